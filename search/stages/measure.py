"""The measuring stages: what schedules with their routers really do, on held-out data and on the clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter

from ftp_core.cost import FlopsCounter, kv_bytes, measure_latency, timing_batch
from ftp_core.cost.memory import peak_activation_bytes
from ftp_core.cost.speedup import PATIENCE_MS, Speedup, needs_more_turns, paired_speedup
from ftp_core.cost.timing import Latency
from ftp_core.quality.quality import Quality, QualitySet
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch, encoded_fingerprint
from search.config.run_config import RunConfig
from search.inputs.data import Workload
from search.stages.open_study import OpenStudy, StoredRouter
from studies import Measurement
from studies.records.halves import stored
from studies.records.study_facts import TimedInput

_LENGTH_MULTIPLE = 32
_QUALITY_BATCH = 16
# To select from candidates, intervals need not be as narrow as in a report.
_PATIENCE_MS = {"validation": 60_000.0}
_QUALITY = TypeAdapter(Quality)


@dataclass(frozen=True)
class Variant:
    """A schedule with a router, to be measured; name and trial are those of its `Measurement`."""

    name: str
    schedule: SparsitySchedule
    router: StoredRouter = field(default_factory=StoredRouter)
    trial: int | None = None


def quality_set(study: OpenStudy, split: str, model: SkippingModel | None = None) -> QualitySet:
    """The examples of a split with the answers of the dense model, or of a copy of it."""
    examples = study.workload.examples(split)
    with study.view.stage(f"Dense answers, {split}", -(-len(examples) // _QUALITY_BATCH)) as stage:
        return QualitySet(model or study.workload.model.skipping, examples, _QUALITY_BATCH, stage.advance)


def measure(study: OpenStudy, variants: Sequence[Variant], split: str) -> list[Measurement]:
    """Measures variants on a split: their quality, and the time of a prefill, for which they take turns.

    Qualities are kept in the database one by one, so that a stage that was stopped goes on with the next. The dense
    model is the first variant; the split is "validation" or "test".
    """
    model = study.workload.model.skipping
    qualities = _qualities(study, variants, split)
    prompts = timed_prompts(study)
    batch, length = prompts.ids.shape
    timings = _timings(study, variants, prompts, _PATIENCE_MS.get(split, PATIENCE_MS))
    measurements, counter = [], FlopsCounter(model)
    held = _activations(study, variants, batch, length)
    for variant, quality, (latency, speedup), peak in zip(variants, qualities, timings, held, strict=True):
        router = variant.router.router
        measurements.append(
            Measurement(
                variant=variant.name,
                trial=variant.trial,
                schedule=stored(variant.schedule),
                latency_ms=latency.median_ms,
                latency_low_ms=latency.low_ms,
                latency_high_ms=latency.high_ms,
                repeats=len(latency.times_ms),
                batch=batch,
                length=length,
                flops=counter.count(variant.schedule, batch, length, router=router).total,
                kv_bytes=kv_bytes(model, variant.schedule, batch, length),
                split=split,
                router=variant.router.number,
                peak_bytes=peak,
                speedup=speedup.ratio,
                speedup_low=speedup.low,
                speedup_high=speedup.high,
                **_quality_figures(quality),
            )
        )
    return measurements


def measure_elsewhere(
    study: OpenStudy, variants: Sequence[Variant], tested: Sequence[Measurement]
) -> list[Measurement]:
    """Measures the quality of variants on each set of other data; all else is as it was measured on test items.

    The dense model is the first variant.
    """
    return [
        replace(on_test, split=name, **_quality_figures(quality))
        for name in study.workload.elsewhere
        for on_test, quality in zip(tested, _qualities(study, variants, name), strict=True)
    ]


def _quality_figures(quality: Quality) -> dict[str, Any]:
    """The fields of a measurement that hang on the examples."""
    low, high = quality.accuracy_interval or (None, None)
    return {
        "kl": quality.kl,
        "perplexity": quality.perplexity,
        "accuracy": quality.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "n_items": quality.n_items,
        "n_choice_items": quality.n_choice_items,
        **_ends("kl", quality.kl_interval),
        **_ends("perplexity", quality.perplexity_interval),
    }


def timed_prompts(study: OpenStudy) -> PromptBatch:
    """The timed input of a study: rows of tokens of calibration prompts, as long as `timed_length` says."""
    known = study.facts.timed_input
    return prompts_of(study, timed_length(study.config, study.workload, known))


def prompts_of(study: OpenStudy, length: int) -> PromptBatch:
    """Rows of so many tokens of calibration prompts, to time what they take."""
    prompts = [example.prompt for example in study.workload.splits["calibration"]]
    return timing_batch(prompts, study.config.latency_batch, length)


def timed_length(config: RunConfig, workload: Workload, known: TimedInput | None = None) -> int:
    """Tokens of each prompt that costs are of: by default the 90th percentile of calibration prompts, rounded up.

    A study keeps the length of the prefill that it began with, which is None before.
    """
    if known is not None:
        length = known.length
    elif config.latency_length:
        length = config.latency_length[0]
    else:
        lengths = sorted(len(example.prompt) for example in workload.splits["calibration"])
        length = lengths[int(0.9 * (len(lengths) - 1))]
        length = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return min(length, workload.model.skipping.context)


def _qualities(study: OpenStudy, variants: Sequence[Variant], split: str) -> list[Quality]:
    """Quality of each variant, from the database as far as it is known."""
    examples: QualitySet | None = None
    qualities = []
    n_batches = -(-len(study.workload.examples(split)) // _QUALITY_BATCH)
    with study.view.stage(f"Measuring quality, {split}", len(variants) * n_batches) as stage:
        for variant in variants:
            quality = known_quality(study, variant, split)
            if quality is None:
                study.lease.check()
                examples = quality_set(study, split) if examples is None else examples
                quality = examples.evaluate(
                    variant.schedule,
                    variant.router.router,
                    choices=True,
                    intervals=True,
                    on_batch=stage.advance,
                    items=True,
                )
                context = _quality_context(study, split, variant.router)
                study.store.evaluations.keep(context, stored(variant.schedule), asdict(quality))
            else:
                stage.advance(n_batches)
            qualities.append(quality)
    return qualities


def known_quality(study: OpenStudy, variant: Variant, split: str) -> Quality | None:
    """Quality of a variant on the examples of a split, and on each of them, if it was measured."""
    schedule = stored(variant.schedule)
    kept = study.store.evaluations.find(_quality_context(study, split, variant.router), [schedule]).get(schedule)
    # Intervals are lists there: JSON knows no tuples.
    return None if kept is None or not kept.get("items") else _QUALITY.validate_python(kept)


def _activations(study: OpenStudy, variants: Sequence[Variant], batch: int, length: int) -> list[int | None]:
    """Peak memory of each variant's prefill, as it is predicted; None where the router reads hidden states."""
    model = study.workload.model.skipping
    # Others with the same schedule and queries take as much.
    known: dict[tuple[SparsitySchedule, int], int] = {}
    found = []
    with study.view.stage("Counting memory", len(variants)) as stage:
        for variant in variants:
            key = variant.schedule, variant.router.router.window
            reads_hidden = variant.router.router.reads_hidden
            if key not in known and not reads_hidden:
                known[key] = peak_activation_bytes(model, variant.schedule, batch, length, key[1])
            found.append(None if reads_hidden else known[key])
            stage.advance()
    return found


def _quality_context(study: OpenStudy, split: str, router: StoredRouter) -> str:
    """Hash of what a quality depends on beside the schedule."""
    model, data = study.workload.model, encoded_fingerprint(study.workload.examples(split))
    deciding = router.sha256 or router.router.kind
    parts = ["quality", model.skipping_fingerprint(), data, deciding, model.skipping.keep_first]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _timings(
    study: OpenStudy, variants: Sequence[Variant], prompts: PromptBatch, patience_ms: float
) -> list[tuple[Latency, Speedup]]:
    """Times each variant, and its speed-up over the first one.

    The first one is timed twice in every turn, at its two ends, and compared with itself: on a quiet machine that is 1.
    """
    least = study.config.timed_runs
    timed = [(one.schedule, one.router.router) for one in (*variants, variants[0])]
    with study.view.stage("Measuring latency", (least + 1) * len(timed)) as stage, torch.inference_mode():

        def goes_on(times_ms: Sequence[Sequence[float]]) -> bool:
            more = needs_more_turns(times_ms, least, patience_ms)
            if more:
                stage.extend(least * len(timed))
            return more

        latencies = measure_latency(
            study.workload.model.skipping, prompts, timed, least, stage.advance, goes_on=goes_on
        )
    dense, *others, again = (latency.times_ms for latency in latencies)
    speedups = [paired_speedup(dense, own) for own in (again, *others)]
    return list(zip(latencies[:-1], speedups, strict=True))


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}

"""The measuring stage: what the points of a front really do, on held-out data and on the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ftp_core.cost import FlopsCounter, LatencyProfile, kv_bytes, measure_latency, timing_batch
from ftp_core.cost.conditions import profile_conditions
from ftp_core.encoding import PromptBatch
from ftp_core.quality import Quality, QualitySet
from ftp_core.routers import Router, StaticRouter, router_from_bytes
from ftp_core.schedule import SparsitySchedule
from search.open_study import OpenStudy
from search.profiles import profile_of, say_doubts, say_elsewhere
from studies import Measurement, TrialRecord, front

_LENGTH_MULTIPLE = 32
_QUALITY_BATCH = 16


@dataclass(frozen=True)
class _Variant:
    """A schedule with a router, as it will be measured."""

    name: str
    trial: int | None
    schedule: SparsitySchedule
    router: Router


def latency_profile(study: OpenStudy) -> LatencyProfile:
    """The latency profile that a study's predictions rest on: of the machine where the study began."""
    model = study.workload.model.skipping
    stored = study.store.study(study.name).facts.get("latency_profile")
    if stored is not None:
        profile = LatencyProfile.from_json(stored)
        say_elsewhere(profile, profile_conditions(model), study.view)
        say_doubts(profile, study.view)
        return profile
    batch, length = timed_prompts(study).ids.shape
    profile = profile_of(study.store, model, [(batch, length)], study.view).profile
    study.store.set_facts(study.name, {"latency_profile": profile.to_json()})
    return profile


def quality_set(study: OpenStudy, split: str) -> QualitySet:
    """The examples of a split with the dense model's answers."""
    examples = study.workload.splits[split]
    with study.view.stage(f"Dense answers, {split}", -(-len(examples) // _QUALITY_BATCH)) as stage:
        return QualitySet(study.workload.model.skipping, examples, _QUALITY_BATCH, stage.advance)


def measure(study: OpenStudy, chosen: TrialRecord) -> list[Measurement]:
    """Accuracy and latency of the front, of the distilled router, and of what they compare with.

    Args:
        study: What to measure.
        chosen: The trial that was chosen from its front.
    """
    variants = _variants(study, chosen)
    config, model = study.config, study.workload.model.skipping
    test = quality_set(study, "test")
    qualities: list[Quality] = []
    with study.view.stage("Measuring quality", len(variants)) as stage:
        for variant in variants:
            qualities.append(test.evaluate(variant.schedule, variant.router, choices=True))
            stage.advance()
    prompts = timed_prompts(study)
    batch, length = prompts.ids.shape
    with study.view.stage("Measuring latency", config.repeats) as stage, torch.inference_mode():
        latencies = measure_latency(
            model, prompts, [(v.schedule, v.router) for v in variants], config.repeats, stage.advance
        )
    measurements, counter = [], FlopsCounter(model)
    for variant, quality, latency in zip(variants, qualities, latencies, strict=True):
        low, high = quality.accuracy_interval or (None, None)
        measurements.append(
            Measurement(
                variant=variant.name,
                trial=variant.trial,
                schedule=tuple(variant.schedule),
                kl=quality.kl,
                perplexity=quality.perplexity,
                accuracy=quality.accuracy,
                accuracy_low=low,
                accuracy_high=high,
                n_items=quality.n_items,
                n_choice_items=quality.n_choice_items,
                latency_ms=latency.median_ms,
                latency_low_ms=latency.low_ms,
                latency_high_ms=latency.high_ms,
                repeats=latency.repeats,
                batch=batch,
                length=length,
                flops=counter.count(variant.schedule, batch, length, window=variant.router.window).total,
                kv_bytes=kv_bytes(model, variant.schedule, batch, length),
            )
        )
    return measurements


def timed_prompts(study: OpenStudy) -> PromptBatch:
    """The timed input: rows as long as the 90th percentile of prompts, rounded up, of the test's own tokens."""
    prompts = [example.prompt for example in study.workload.splits["test"]]
    lengths = sorted(len(prompt) for prompt in prompts)
    length = lengths[int(0.9 * (len(lengths) - 1))]
    length = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return timing_batch(prompts, study.config.latency_batch, min(length, study.workload.model.skipping.context))


def _variants(study: OpenStudy, chosen: TrialRecord) -> list[_Variant]:
    n_blocks, static = study.workload.model.skipping.n_blocks, StaticRouter()
    variants = [
        _Variant("dense", None, SparsitySchedule.uniform(0.0, n_blocks), static),
        _Variant("uniform", None, SparsitySchedule.uniform(chosen.overall_sparsity, n_blocks), static),
    ]
    points = _spread(front(study.store.trials(study.name)), study.config.measured_points, chosen)
    variants += [_Variant("static", p.number, SparsitySchedule(p.schedule), static) for p in points]
    latest = study.store.latest_router(study.name)
    if latest is not None and latest.trial == chosen.number:
        router = router_from_bytes(latest.weights).eval()
        variants.append(_Variant("dynamic", latest.trial, SparsitySchedule(latest.schedule), router))
    return variants


def _spread(points: Sequence[TrialRecord], most: int, chosen: TrialRecord) -> list[TrialRecord]:
    """At most `most` points of a front, evenly spread along it, the chosen one among them."""
    points = list(points)
    if len(points) > most:
        picked = {round(i * (len(points) - 1) / max(1, most - 1)) for i in range(most)}
        points = [point for index, point in enumerate(points) if index in picked]
    if all(point.number != chosen.number for point in points):
        nearest = min(range(len(points)), key=lambda i: abs(points[i].overall_sparsity - chosen.overall_sparsity))
        points[nearest] = chosen
    return points

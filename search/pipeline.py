"""From a configuration to a measured front: search, choose, distil, measure; the study keeps each stage as it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from ftp_core.cost import LatencyProfile, measure_latency, prefill_flops, profile_latency, timing_batch
from ftp_core.distillation import DistillationConfig, distill
from ftp_core.encoding import PromptBatch
from ftp_core.quality import Quality, QualitySet
from ftp_core.routing import DynamicRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from search.config import RunConfig
from search.engine import Known, SearchEngine
from search.errors import SearchError
from search.evaluators import Evaluation, Evaluator
from search.progress import ProgressView
from search.proposers import Proposer
from search.proposers.genetic import GeneticProposer
from search.proposers.sampled import SampledProposer
from search.space import ScheduleSpace
from search.workload import Workload, load_workload
from studies import (
    Measurement,
    RouterRun,
    StudyState,
    StudyStore,
    TrialRecord,
    TrialState,
    closest_to_sparsity,
    front,
    knee,
)

_PROFILE_REPEATS = 7
_LENGTH_MULTIPLE = 32


@dataclass(frozen=True)
class _Variant:
    """A schedule with a router, as it will be measured."""

    name: str
    trial: int | None
    schedule: SparsitySchedule
    router: Router


class Pipeline:
    """The stages of one study, each of which continues where the study stands.

    Args:
        store: Where the study lives; it must exist.
        name: Its name.
        view: Where progress is drawn.
    """

    def __init__(self, store: StudyStore, name: str, view: ProgressView) -> None:
        self._store = store
        self._name = name
        self._view = view
        self.config = RunConfig.checked(**store.study(name).config)
        self._workload: Workload | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The study's state while stages run: running, then stopped or failed if they do not come to their end."""
        self._store.set_state(self._name, StudyState.RUNNING)
        try:
            yield
        except KeyboardInterrupt:
            self._store.set_state(self._name, StudyState.STOPPED)
            raise
        except BaseException:
            self._store.set_state(self._name, StudyState.FAILED)
            raise

    def run(self) -> None:
        """Every stage that is still missing."""
        with self.running():
            self.search()
            self.distill()
            self.measure()
            self._store.set_state(self._name, StudyState.FINISHED)

    def search_only(self) -> None:
        """The search stage alone."""
        with self.running():
            self.search()
            self._store.set_state(self._name, StudyState.FINISHED)

    def distill_only(self) -> None:
        """A new router for the chosen schedule, measured."""
        with self.running():
            self.distill(again=True)
            self.measure()
            self._store.set_state(self._name, StudyState.FINISHED)

    @property
    def workload(self) -> Workload:
        """Model and data, loaded on first use and checked against what the study began with."""
        if self._workload is None:
            config = self.config
            with self._view.stage("Loading model and data", 1) as stage:
                workload = load_workload(config.model, config.data, config.seed, config.sizes)
                found = {
                    "model_fingerprint": workload.model.fingerprint(),
                    "data_fingerprint": workload.data_fingerprint,
                }
                stage.advance()
            facts = self._store.study(self._name).facts
            for key, value in found.items():
                if facts.get(key, value) != value:
                    raise SearchError(
                        f"The {key.split('_')[0]} changed since study {self._name!r} began: its trials would not "
                        "compare with new ones. Restore it, or start a new study."
                    )
            model = workload.model.skipping
            if workload.dropped:
                self._view.console.print(f"Left out {workload.dropped} examples that exceed the model's context.")
            counts = {"n_blocks": model.n_blocks, "dropped_examples": workload.dropped}
            self._store.set_facts(self._name, found | counts)
            self._workload = workload
        return self._workload

    def _timing_batch(self) -> PromptBatch:
        """The timed input: rows as long as the 90th percentile of prompts, rounded up, of the test's own tokens."""
        prompts = [example.prompt for example in self.workload.splits["test"]]
        lengths = sorted(len(prompt) for prompt in prompts)
        length = lengths[int(0.9 * (len(lengths) - 1))]
        length = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        return timing_batch(prompts, self.config.latency_batch, min(length, self.workload.model.skipping.context))

    def _profile(self) -> LatencyProfile:
        """The latency profile that this study's predictions rest on, measured once."""
        stored = self._store.study(self._name).facts.get("latency_profile")
        if stored is not None:
            return LatencyProfile.from_json(stored)
        with self._view.stage("Profiling latency", _PROFILE_REPEATS) as stage:
            model, prompts = self.workload.model.skipping, self._timing_batch()
            profile = profile_latency(model, prompts, _PROFILE_REPEATS, stage.advance)
        self._store.set_facts(self._name, {"latency_profile": profile.to_json()})
        return profile

    def search(self) -> None:
        """Evaluate schedules until the budget is used."""
        config = self.config
        trials = self._store.trials(self._name)
        remaining = config.trials - len(trials)
        if remaining <= 0:
            return
        space = ScheduleSpace(self.workload.model.skipping.n_blocks, config.target_sparsity)
        profile = self._profile()

        def objectives(evaluation: Evaluation) -> tuple[float, ...]:
            return (evaluation.metrics["kl"], profile.predict_ms(evaluation.schedule))

        # A resumed search draws other numbers than the beginning did; with the same ones it would propose it again.
        seed = config.seed * 1_000_003 + len(trials)
        proposers: list[Proposer] = [GeneticProposer(space, seed), SampledProposer(space, seed)]
        known = [Known(SparsitySchedule(trial.schedule), trial.values) for trial in trials]
        engine = SearchEngine(space, proposers, self._start_workers(), objectives, known, seed)
        number = len(trials)
        with self._view.stage("Searching schedules", config.trials, number) as stage:

            def keep(evaluation: Evaluation, proposer: str, values: tuple[float, ...] | None) -> None:
                nonlocal number
                record = TrialRecord(
                    number=number,
                    schedule=tuple(evaluation.schedule),
                    values=values,
                    state=TrialState.FAILED if values is None else TrialState.FINISHED,
                    fidelity=1.0,
                    proposer=proposer,
                    seconds=evaluation.seconds,
                    finished_at=datetime.now(UTC),
                    metrics=evaluation.metrics,
                    error=evaluation.error,
                )
                self._store.append_trial(self._name, record)
                number += 1
                trials.append(record)
                stage.advance(note=self._best_note(trials) if number % 10 == 0 else "")

            try:
                engine.run(remaining, keep)
            finally:
                self._evaluator.close()
        if not front(trials):
            error = trials[-1].error if trials else "no schedule was evaluated"
            raise SearchError(f"All {len(trials)} trials failed; the last one says: {error}")
        chosen = self._choose(front(trials))
        self._store.choose_trial(self._name, chosen.number)

    def _start_workers(self) -> Evaluator:
        # Ray takes a second to import: commands that only read a study shall not wait for it.
        from search.evaluators.ray_pool import RayPool, WorkerSetup

        config = self.config
        setup = WorkerSetup(config.model, config.data, config.seed, config.sizes, config.search_items)
        with self._view.stage("Starting workers", config.workers) as stage:
            self._evaluator: Evaluator = RayPool(setup, config.workers, stage.advance)
        return self._evaluator

    def _best_note(self, trials: Sequence[TrialRecord]) -> str:
        points = front(trials)
        if not points:
            return "no trial finished"
        best = self._choose(points)
        assert best.values is not None
        return f"front {len(points)}, best: KL {best.values[0]:.3g} at {best.values[1]:.1f} ms"

    def _choose(self, points: Sequence[TrialRecord]) -> TrialRecord:
        if self.config.target_sparsity is not None:
            return closest_to_sparsity(points, self.config.target_sparsity)
        return knee(points)

    def _chosen(self) -> TrialRecord:
        number = self._store.study(self._name).chosen_trial
        if number is None:
            raise SearchError(
                f"Study {self._name!r} has no chosen schedule yet: finish its search with "
                f"`ftp-search resume {self._name}`."
            )
        return self._store.trials(self._name)[number]

    def distill(self, again: bool = False) -> None:
        """Train a dynamic router on the chosen schedule, unless the study has one.

        Args:
            again: Train another one even then.
        """
        chosen = self._chosen()
        latest = self._store.latest_router(self._name)
        if latest is not None and latest.trial == chosen.number and not again:
            return
        model, splits = self.workload.model.skipping, self.workload.splits
        config = DistillationConfig(steps=self.config.router_steps, seed=self.config.seed)
        held_out = QualitySet(model, splits["validation"])
        with self._view.stage("Distilling the router", config.steps) as stage:
            schedule = SparsitySchedule(chosen.schedule)
            result = distill(
                model,
                splits["calibration"],
                held_out,
                [schedule],
                config,
                on_step=lambda _, kl: stage.advance(note=f"held-out KL {kl:.3g}"),
            )
        weights = result.router.to_bytes()
        self._store.add_router_run(
            self._name,
            RouterRun(
                trial=chosen.number,
                schedule=chosen.schedule,
                config=config.to_json(),
                curves=result.curves,
                weights=weights,
                sha256=hashlib.sha256(weights).hexdigest(),
                seconds=result.seconds,
                created_at=datetime.now(UTC),
            ),
        )

    def measure(self) -> None:
        """Measure accuracy and latency of the front, of the distilled router, and of what they compare with."""
        variants = self._variants()
        config, model = self.config, self.workload.model.skipping
        quality_set = QualitySet(model, self.workload.splits["test"])
        qualities: list[Quality] = []
        with self._view.stage("Measuring quality", len(variants)) as stage:
            for variant in variants:
                qualities.append(quality_set.evaluate(variant.schedule, variant.router, choices=True))
                stage.advance()
        prompts = self._timing_batch()
        batch, length = prompts.ids.shape
        with self._view.stage("Measuring latency", config.repeats) as stage, torch.inference_mode():
            latencies = measure_latency(
                model, prompts, [(v.schedule, v.router) for v in variants], config.repeats, stage.advance
            )
        measurements = []
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
                    latency_ms=latency.median_ms,
                    latency_low_ms=latency.low_ms,
                    latency_high_ms=latency.high_ms,
                    repeats=latency.repeats,
                    batch=batch,
                    length=length,
                    flops=prefill_flops(model, variant.schedule, batch, length),
                )
            )
        self._store.replace_measurements(self._name, measurements)

    def _variants(self) -> list[_Variant]:
        chosen, n_blocks = self._chosen(), self.workload.model.skipping.n_blocks
        static = StaticRouter()
        variants = [
            _Variant("dense", None, SparsitySchedule.uniform(0.0, n_blocks), static),
            _Variant("uniform", None, SparsitySchedule.uniform(chosen.overall_sparsity, n_blocks), static),
        ]
        points = _spread(front(self._store.trials(self._name)), self.config.measured_points, chosen)
        variants += [_Variant("static", p.number, SparsitySchedule(p.schedule), static) for p in points]
        latest = self._store.latest_router(self._name)
        if latest is not None:
            router = DynamicRouter.from_bytes(latest.weights).eval()
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

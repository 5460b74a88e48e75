"""From a configuration to a measured front: search, choose, distil, measure; the study keeps each stage as it ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from ftp_core.cost import (
    LatencyProfile,
    measure_latency,
    prefill_flops,
    profile_conditions,
    profile_latency,
    timing_batch,
)
from ftp_core.distillation import distill
from ftp_core.distillation_config import DistillationConfig
from ftp_core.encoding import PromptBatch
from ftp_core.quality import Quality, QualitySet
from ftp_core.routers import Router, StaticRouter, router_from_bytes, router_to_bytes
from ftp_core.schedule import SparsitySchedule
from search.config import RunConfig
from search.engine import Known, Queued, SearchEngine
from search.errors import SearchError
from search.evaluators import Evaluation, Evaluator
from search.ledger import StudyLedger
from search.progress import ProgressView
from search.proposers import Proposer
from search.proposers.genetic import GeneticProposer
from search.proposers.sampled import SampledProposer
from search.space import ScheduleSpace
from search.workload import Workload, load_workload
from studies import (
    Lease,
    LeaseLostError,
    Measurement,
    RouterRun,
    StorageError,
    StudyState,
    StudyStore,
    TrialRecord,
    closest_to_sparsity,
    front,
    knee,
)

_PROFILE_REPEATS = 7
_LENGTH_MULTIPLE = 32
_QUALITY_BATCH = 16


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
        lease: The right to work on it.
        view: Where progress is drawn.
        workload: Model and data, if they are loaded already.

    Raises:
        SearchError: Model or data are not those that the study began with.
        CoreError: One of them cannot be used.
    """

    def __init__(
        self, store: StudyStore, name: str, lease: Lease, view: ProgressView, workload: Workload | None = None
    ) -> None:
        self._store = store
        self._name = name
        self._lease = lease
        self._view = view
        self.config = RunConfig.stored(store.study(name).config)
        self.workload = load_with_progress(self.config, view) if workload is None else workload
        self._check_workload()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The study's state while stages run: running, then finished, or stopped or failed if they do not end well."""
        self._store.set_state(self._name, StudyState.RUNNING)
        with self._noted(lambda state: self._store.set_state(self._name, state)):
            yield

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        """Note when a stage begins, and when and how it ends."""
        self._store.begin_stage(self._name, stage)
        with self._noted(lambda state: self._store.end_stage(self._name, stage, state)):
            yield

    @contextmanager
    def _noted(self, note: Callable[[StudyState], object]) -> Iterator[None]:
        """Note how what happens inside ends: finished, stopped, or failed."""
        try:
            yield
        except LeaseLostError:
            # The study is another process's now, and so is what is said of it.
            raise
        except BaseException as error:
            try:
                # A study that nobody works on counts as stopped, so this is not worth waiting for.
                with self._store.hurried():
                    note(StudyState.STOPPED if isinstance(error, KeyboardInterrupt) else StudyState.FAILED)
            except StorageError as unwritten:
                self._view.console.print(f"How study {self._name!r} ended is not written: {unwritten}", highlight=False)
            raise
        note(StudyState.FINISHED)

    def run(self) -> None:
        """Every stage that is still missing."""
        with self.running():
            self.search()
            self.distill()
            self.measure()

    def search_only(self) -> None:
        """The search stage alone."""
        with self.running():
            self.search()

    def distill_only(
        self, router_steps: int | None = None, seed: int | None = None, target_sparsity: float | None = None
    ) -> None:
        """A new router for the chosen schedule, measured.

        Args:
            router_steps: Steps of its training; None for the study's own.
            seed: Of its training; None for the study's own.
            target_sparsity: Choose the front's best schedule at this overall sparsity first.

        Raises:
            SearchError: No schedule is chosen yet, or the chosen one skips nothing.
        """
        chosen = self._chosen()
        if target_sparsity is not None:
            chosen = closest_to_sparsity(front(self._store.trials(self._name)), target_sparsity)
        if not any(chosen.schedule):
            raise SearchError(
                f"The chosen schedule of study {self._name!r} skips nothing, so there is nothing to route: "
                "choose another with --target-sparsity."
            )
        with self.running():
            self._store.choose_trial(self._name, chosen.number)
            steps = self.config.router_steps if router_steps is None else router_steps
            with self._stage("distill"):
                self._train_router(chosen, steps, self.config.seed if seed is None else seed)
            self.measure()

    def _check_workload(self) -> None:
        """Compare model and data with what the study began with, or record them if it begins now."""
        model = self.workload.model.skipping
        found = {
            "model_fingerprint": self.workload.model.fingerprint(),
            "data_fingerprint": self.workload.data_fingerprint,
        }
        facts = self._store.study(self._name).facts
        for key, value in found.items():
            if facts.get(key, value) != value:
                raise SearchError(
                    f"The {key.split('_')[0]} changed since study {self._name!r} began: its trials would not "
                    "compare with new ones. Restore it, or start a new study."
                )
        counts = {"n_blocks": model.n_blocks, "dropped_examples": self.workload.dropped}
        self._store.set_facts(self._name, found | counts)

    def _timing_batch(self) -> PromptBatch:
        """The timed input: rows as long as the 90th percentile of prompts, rounded up, of the test's own tokens."""
        prompts = [example.prompt for example in self.workload.splits["test"]]
        lengths = sorted(len(prompt) for prompt in prompts)
        length = lengths[int(0.9 * (len(lengths) - 1))]
        length = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        return timing_batch(prompts, self.config.latency_batch, min(length, self.workload.model.skipping.context))

    def _profile(self) -> LatencyProfile:
        """The latency profile that this study's predictions rest on, measured once for its model on this machine."""
        stored = self._store.study(self._name).facts.get("latency_profile")
        if stored is not None:
            return LatencyProfile.from_json(stored)
        model, prompts = self.workload.model.skipping, self._timing_batch()
        conditions = profile_conditions(self.workload.model.fingerprint(), prompts)
        fingerprint = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
        kept = self._store.latency_profile(fingerprint)
        if kept is None:
            with self._view.stage("Profiling latency", _PROFILE_REPEATS) as stage:
                measured = profile_latency(model, prompts, _PROFILE_REPEATS, stage.advance)
            kept = self._store.keep_latency_profile(fingerprint, conditions, measured.to_json())
        self._store.set_facts(self._name, {"latency_profile": dict(kept)})
        return LatencyProfile.from_json(kept)

    def search(self) -> None:
        """Evaluate schedules until the budget is used."""
        config = self.config
        trials = self._store.trials(self._name)
        remaining = config.trials - len(trials)
        if remaining > 0:
            with self._stage("search"):
                self._evaluate(trials, remaining)
        elif self._store.study(self._name).chosen_trial is not None:
            return
        if not front(trials):
            error = trials[-1].error if trials else "no schedule was evaluated"
            raise SearchError(f"All {len(trials)} trials failed; the last one says: {error}")
        chosen = choose(front(trials), self.config.target_sparsity)
        self._store.choose_trial(self._name, chosen.number)

    def _evaluate(self, trials: list[TrialRecord], budget: int) -> None:
        """Evaluate and keep up to `budget` schedules, those first that a process that died had begun.

        The trials are added to `trials`.
        """
        config = self.config
        space = ScheduleSpace(self.workload.model.skipping.n_blocks, config.target_sparsity)
        profile = self._profile()
        ledger = StudyLedger(self._store, self._name, self._lease, trials)

        def objectives(evaluation: Evaluation) -> tuple[float, ...]:
            return (evaluation.metrics["kl"], profile.predict_ms(evaluation.schedule))

        proposers: list[Proposer] = [GeneticProposer(space, config.seed), SampledProposer(space, config.seed)]
        known = [Known(trial.number, SparsitySchedule(trial.schedule), trial.values) for trial in trials]
        with (
            closing(self._start_workers()) as evaluator,
            self._view.stage("Searching schedules", config.trials, len(trials)) as stage,
        ):
            ledger.on_kept = lambda: stage.advance(note=self._best_note(trials) if len(trials) % 10 == 0 else "")
            queue = [
                Queued(trial.number, SparsitySchedule(trial.schedule), trial.proposer)
                for trial in self._store.claim_queue(self._name)
            ]
            engine = SearchEngine(
                space,
                proposers,
                evaluator,
                objectives,
                ledger,
                known,
                queue,
                config.seed,
                config.deterministic,
                ledger.tallies(),
            )
            with self._noted(lambda _: ledger.keep_tallies()):
                engine.run(budget)

    def _start_workers(self) -> Evaluator:
        # Ray takes a second to import: commands that only read a study shall not wait for it.
        from search.evaluators.ray_pool import RayPool, WorkerSetup

        config = self.config
        setup = WorkerSetup(config.model, config.data, config.seed, config.sizes, config.search_items)
        with self._view.stage("Starting workers", config.workers) as stage:
            return RayPool(setup, config.workers, stage.advance)

    def _best_note(self, trials: Sequence[TrialRecord]) -> str:
        points = front(trials)
        if not points:
            return "no trial finished"
        best = choose(points, self.config.target_sparsity)
        assert best.values is not None
        return f"front {len(points)}, best: KL {best.values[0]:.3g} at {best.values[1]:.1f} ms"

    def _chosen(self) -> TrialRecord:
        number = self._store.study(self._name).chosen_trial
        if number is None:
            raise SearchError(
                f"Study {self._name!r} has no chosen schedule yet: finish its search with "
                f"`ftp-search resume {self._name}`."
            )
        return self._store.trial(self._name, number)

    def distill(self) -> None:
        """Train a dynamic router on the chosen schedule, unless the study has one or the schedule skips nothing."""
        chosen = self._chosen()
        latest = self._store.latest_router(self._name)
        if latest is not None and latest.trial == chosen.number:
            return
        if not any(chosen.schedule):
            self._view.console.print("The chosen schedule skips nothing: there is no router to distil.")
            return
        with self._stage("distill"):
            self._train_router(chosen, self.config.router_steps, self.config.seed)

    def _train_router(self, chosen: TrialRecord, steps: int, seed: int) -> None:
        model, splits = self.workload.model.skipping, self.workload.splits
        config = DistillationConfig(steps=steps, seed=seed)
        held_out = self._quality_set("validation")
        examples = splits["calibration"]
        n_batches = -(-len(examples) // config.batch_size)
        with self._view.stage("Distilling the router", n_batches + config.steps) as stage:
            result = distill(
                model,
                examples,
                [SparsitySchedule(chosen.schedule)],
                config,
                held_out=held_out,
                on_step=lambda _, kl: stage.advance(note=f"held-out KL {kl:.3g}"),
                on_taught=lambda: stage.advance(note="dense answers"),
            )
        weights = router_to_bytes(result.router)
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

    def _quality_set(self, split: str) -> QualitySet:
        examples = self.workload.splits[split]
        with self._view.stage(f"Dense answers, {split}", -(-len(examples) // _QUALITY_BATCH)) as stage:
            return QualitySet(self.workload.model.skipping, examples, _QUALITY_BATCH, stage.advance)

    def measure(self) -> None:
        """Measure accuracy and latency of the front, of the distilled router, and of what they compare with."""
        with self._stage("measure"):
            self._measure()

    def _measure(self) -> None:
        variants = self._variants()
        config, model = self.config, self.workload.model.skipping
        quality_set = self._quality_set("test")
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
                    n_choice_items=quality.n_choice_items,
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
        if latest is not None and latest.trial == chosen.number:
            router = router_from_bytes(latest.weights).eval()
            variants.append(_Variant("dynamic", latest.trial, SparsitySchedule(latest.schedule), router))
        return variants


def load_with_progress(config: RunConfig, view: ProgressView) -> Workload:
    """The model and data of a configuration, as `load_workload` reads them.

    Raises:
        CoreError: One of them cannot be used.
    """
    with view.stage("Loading model and data", 1) as stage:
        workload = load_workload(config.model, config.data, config.seed, config.sizes)
        stage.advance()
    if workload.dropped:
        view.console.print(f"Left out {workload.dropped} examples that exceed the model's context.")
    return workload


def choose(points: Sequence[TrialRecord], target_sparsity: float | None) -> TrialRecord:
    """The point of a front to distil: the best at a target overall sparsity, or else the knee.

    A front of few points can bend at the dense model, which is no find: then it is the knee of the others.

    Args:
        points: A front, as `front` returns it.
        target_sparsity: The target, if there is one.
    """
    if target_sparsity is not None:
        return closest_to_sparsity(points, target_sparsity)
    best = knee(points)
    sparse = [point for point in points if any(point.schedule)]
    return best if any(best.schedule) or not sparse else knee(sparse)


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

"""From a configuration to a measured front: search, choose, distil, measure; the study keeps each stage as it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from ftp_core.distillation import distill
from ftp_core.distillation_config import DistillationConfig
from ftp_core.routers import router_to_bytes
from ftp_core.schedule import SparsitySchedule
from search.config import RunConfig
from search.errors import SearchError
from search.measuring import measure, quality_set
from search.open_study import OpenStudy
from search.progress import ProgressView
from search.searching import search_schedules, study_costs
from search.workload import Workload, load_workload
from studies import (
    Lease,
    LeaseLostError,
    RouterRun,
    StorageError,
    StudyState,
    StudyStore,
    TrialRecord,
    closest_to_sparsity,
    front,
    knee,
)


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
        self._study = OpenStudy(store, name, lease, self.config, self.workload, view)

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

    def search(self) -> None:
        """Evaluate schedules until the budget is used."""
        n_trials = self._store.n_trials(self._name)
        if n_trials < self.config.trials:
            with self._stage("search"):
                search_schedules(self._study, study_costs(self._study))
        elif self._store.study(self._name).chosen_trial is not None:
            return
        trials = self._store.trials(self._name)
        points = front(trials)
        if not points:
            raise SearchError(_nothing_found(trials, self.config))
        self._store.choose_trial(self._name, choose(points, self.config.target_sparsity).number)

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
        held_out = quality_set(self._study, "validation")
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

    def measure(self) -> None:
        """Measure accuracy and latency of the front, of the distilled router, and of what they compare with."""
        with self._stage("measure"):
            self._store.replace_measurements(self._name, measure(self._study, self._chosen()))


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


def _nothing_found(trials: Sequence[TrialRecord], config: RunConfig) -> str:
    """Why a study has no front."""
    if not trials:
        return "No schedule was evaluated: allow the search more seconds."
    if config.min_accuracy is not None and any(trial.violation > 0 for trial in trials):
        best = max(trial.metrics.get("accuracy", 0.0) for trial in trials)
        return (
            f"None of {len(trials)} trials has an accuracy of {config.min_accuracy:g} on the search set; the best has "
            f"{best:.3g}. Demand less with --min-accuracy."
        )
    return f"All {len(trials)} trials failed; the last one says: {trials[-1].error}"

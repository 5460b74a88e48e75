"""A search of schedules: builds space, proposers, workers and engine from a study's configuration, and runs them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from search.config.run_config import RunConfig
from search.engine.ablations import plan_ablations, plan_design
from search.engine.engine import SearchEngine
from search.engine.interruption import gentle_interruption
from search.engine.portfolio import Portfolio
from search.engine.pruning import OptunaPruning, Pruner
from search.engine.termination import Stopping
from search.problem.cost_limit import LIMIT_COSTS, CostLimit
from search.problem.costs import Costs
from search.problem.genes import FIRST_WITH_KEYS_KEPT
from search.problem.initial_design import ablated
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.progress.progress_view import Stage
from search.proposers.catalogue import make_proposers
from search.stages.confirm import confirm, confirmation_is_due
from search.stages.fresh_items import fresh_batches
from search.stages.knee import choose_from_front
from search.stages.open_study import OpenStudy, StoredRouter
from search.stages.refine_rounds import fresh_rounds
from search.stages.sql_trial_store import SqlTrialStore
from search.stages.study_costs import note_costs, study_costs
from search.stages.workers import search_context, share_of_ablations, start_workers
from studies import StudyRecord, Trial, TrialState, best_point
from studies.pareto import ParetoArchive, study_volume
from studies.records.objectives import DEFAULT_COST, CostName, objective
from studies.records.study_facts import StudyFacts
from studies.records.target import Target

if TYPE_CHECKING:
    from search.evaluators.ray_pool import RayPool

_SECONDS_BETWEEN_RESIZES = 2.0
_SECONDS_BETWEEN_NOTES = 0.5
# How many of the latest trials a search starts from, beside the front.
_LATEST = 2000
_GIB = 2.0**30


@dataclass(frozen=True)
class Search:
    """One of a study's searches."""

    round: int  # 0 for the first one, n for the n-th refinement
    trials: int  # schedules to evaluate, those of earlier runs of this search included
    router: StoredRouter = field(default_factory=StoredRouter)
    first_trial: int = 0  # its number

    @property
    def stage(self) -> str:
        """Name of the stage that it is."""
        return "search" if self.round == 0 else f"refine-{self.round}"


def first_search(study: OpenStudy) -> None:
    """Evaluates schedules with the static router until the budget is used, and chooses one of the front."""
    if study.facts.rounds:
        # The front that they refined is about to change.
        study.note(fresh_rounds)
    # A run that was stopped may have left it at its race on fresh items.
    if study.store.trials.spent(study.name, 0) < study.config.trials or confirmation_is_due(study, 0):
        note_costs(study)
        search = Search(0, study.config.trials, first_trial=study.store.trials.n_begun(study.name))
        search_schedules(study, study_costs(study), search)
    choose_from_front(study)


def search_schedules(study: OpenStudy, costs: Costs, search: Search) -> None:
    """Evaluates schedules, of certain costs, until a condition ends it.

    A refinement starts from what earlier searches found: their fronts are evaluated first where another router decides
    now, and proposers learn from them.

    Raises:
        ConfigError: No schedule keeps the latency; what can be known without costs, `check_search` has checked.
        EvaluationError: No worker could start.
        ForeignResultsError: The study's folder holds the results of another study.
        StudyBusyError: A process works on the study that this one replaces.
        KeyboardInterrupt: Ctrl-C was pressed, and what was in flight has ended.
    """
    config = study.config
    space = schedule_space(config, study.workload.model.skipping.n_blocks, costs)
    objectives = Objectives(costs.function(config.cost), config.min_accuracy)
    warm = warm_trials(_earlier_trials(study, search), space, objectives)
    context = search_context(study, search.router)
    trials = SqlTrialStore(study.store, study.name, study.lease, context, search.round, search.router.number, costs.of)
    title = f"Refining schedules, round {search.round}" if search.round else "Searching schedules"
    aside = study.store.trials.left_aside(study.name)
    if aside.total:
        study.view.console.print(str(aside))
    portfolio = Portfolio(
        make_proposers(config.sampler, space, config.seed), config.seed, trials.statistics(), config.deterministic
    )
    with (
        closing(start_workers(study, search.router.router, fresh_batches(config, study.workload))) as pool,
        study.view.stage(title, search.trials, trials.n_trials) as stage,
    ):
        engine = SearchEngine(
            space,
            portfolio,
            pool,
            objectives,
            trials,
            seed=config.seed,
            deterministic=config.deterministic,
            fidelities=config.fidelities,
            pruner=_pruner(config),
            warm=warm,
            warm_is_own=search.round > 0,
            first=search.first_trial,
            ablations=_ablations(study, search, space),
            ablation_fidelity=share_of_ablations(study),
            design=plan_design(space, search.trials),
        )
        watch = _Watch(study, stage, trials, pool, search.stage)
        trials.on_kept = watch.on_kept
        stopping = Stopping(search.trials - trials.evaluations, config.seconds, config.plateau)

        # Whatever can be wrong was found out by now: a study that this one replaces goes here, and not before.
        study.settle()

        def on_first() -> None:
            stage.advance(0, "finishing what is in flight; Ctrl-C again leaves at once")

        try:
            with gentle_interruption(on_first) as interruption:
                engine.run(stopping, lambda: interruption.requested)
                if not interruption.requested:
                    confirm(study, search.round, search.router, pool, lambda: interruption.requested)
            if interruption.requested:
                raise KeyboardInterrupt
        finally:
            with study.store.hurried():
                trials.write_statistics()
                _keep_effort(study, engine, pool)
            watch.send_figures()
        if pool.peak_bytes is not None:
            study.view.tell([f"Peak memory of a worker: {pool.peak_bytes / _GIB:.2f} GiB, beside the weights."])
        if stopping.reason is not None and trials.n_trials < search.trials:
            stage.advance(0, f"stopped, since {stopping.reason}")


def schedule_space(config: RunConfig, n_blocks: int, costs: Costs) -> ScheduleSpace:
    """The schedules that a configuration allows; a ConfigError if there is none."""
    asked = {kind: (cost, getattr(config, kind)) for kind, cost in LIMIT_COSTS.items()}
    limits = (
        CostLimit(kind, value, costs.function(cost), costs.dense(cost))
        for kind, (cost, value) in asked.items()
        if value is not None
    )
    granularity, kv = config.granularity, config.kv
    # Decided as the configuration was built.
    assert granularity != "auto"
    assert kv != "auto"
    return ScheduleSpace(
        n_blocks,
        config.target_sparsity,
        first=FIRST_WITH_KEYS_KEPT if kv == "keep" and config.target_sparsity is None else 1,
        dense_blocks=config.dense_blocks,
        limits=tuple(limits),
        granularity=granularity,
        kv=kv,
    )


def _ablations(study: OpenStudy, search: Search, space: ScheduleSpace) -> list[GridIndices]:
    """The ablations that a search begins with; refinements know them from the first search.

    What the first search leaves out, as it is short, is noted, and said when that is new.
    """
    if search.round > 0:
        return []
    schedules, planned = plan_ablations(space, search.trials, study.config.sampler, share_of_ablations(study))
    if planned != study.facts.ablations:
        if planned.left_out:
            study.view.console.print(planned.left_out, highlight=False)
        study.note(StudyFacts(ablations=planned))
    return schedules


def _earlier_trials(study: OpenStudy, search: Search) -> Iterator[Trial]:
    """Trials that a search starts from: those of a study to begin with, or of this one with other routers."""
    if search.round > 0:
        for trial in study.store.trials.each(study.name):
            if trial.round < search.round and trial.router != search.router.number:
                yield trial
    elif study.config.warm_start is not None:
        yield from study.store.trials.each(study.config.warm_start)


def warm_trials(trials: Iterable[Trial], space: ScheduleSpace, objectives: Objectives) -> list[Trial]:
    """Trials found elsewhere, judged by these objectives: the front, and the latest.

    Another study may trade KL against another cost, or may have timed another input. So values come from what was
    evaluated and from the schedule, and the front is that of this study's objectives. Schedules outside the space are
    left out, but for ablations, and so are trials without an accuracy where the objectives demand one.
    """
    found, best = [], ParetoArchive()
    for trial in trials:
        if trial.state is not TrialState.FINISHED or trial.fidelity < 1.0 or "kl" not in trial.metrics:
            continue
        if objectives.min_accuracy is not None and "accuracy" not in trial.metrics:
            continue
        if not space.expresses(trial.schedule):
            continue
        indices = space.grid_indices(trial.schedule)
        if not space.contains(indices) and not ablated(space, indices):
            continue
        values, violation = objectives(space.schedule(indices), trial.metrics)
        judged = replace(trial, values=values, constraint_violation=violation + space.constraint_violation(indices))
        if not judged.is_finite:
            continue
        found.append(judged)
        if judged.is_comparable:
            best.enter(values)
    first_of_latest = len(found) - _LATEST
    return [one for place, one in enumerate(found) if place >= first_of_latest or best.holds(one.values or ())]


def best_note(
    points: list[Trial], cost: CostName = DEFAULT_COST, target: Target | None = None, uncertainty: float | None = None
) -> str:
    """A word on a front of KL against a cost: its point at a target, or its knee.

    Costs are certain to within a share of them, if one is given.
    """
    if not points:
        return "no trial finished"
    best, what = best_point(points, target), "knee" if target is None else f"at {target}"
    assert best.values is not None
    spread = "" if uncertainty is None else f" ± {uncertainty:.0%}"
    return f"front {len(points)}, {what}: KL {best.values[0]:.3g} at {objective(cost).text(best.values[1])}{spread}"


class _Watch:
    """Draws progress, and lets the number of workers follow what the study says."""

    def __init__(self, study: OpenStudy, stage: Stage, trials: SqlTrialStore, pool: RayPool, name: str) -> None:
        self._study = study
        self._stage = stage
        self._trials = trials
        self._pool = pool
        self._name = name
        profile = study.facts.latency_profile if study.config.cost == "latency_ms" else None
        self._uncertainty = None if profile is None else profile.uncertainty
        self._n_workers = study.config.workers
        self._resized = self._noted = self._began = time.monotonic()
        self._n_before = trials.n_trials

    def on_kept(self, n: int) -> None:
        now, note = time.monotonic(), ""
        ended = self._trials.n_trials
        if now - self._noted > _SECONDS_BETWEEN_NOTES or ended == self._n_before + n:
            config = self._study.config
            self._noted, note = (
                now,
                best_note(self._trials.front, config.cost, config.target, self._uncertainty),
            )
            self.send_figures()
        self._stage.advance(n, note)
        if now - self._resized > _SECONDS_BETWEEN_RESIZES:
            self._resized = now
            self._follow()

    def send_figures(self) -> None:
        """Let the view and its observers know how far the search is."""
        points, ended, seconds = self._trials.front, self._trials.n_trials, time.monotonic() - self._began
        figures: dict[str, float] = {
            "trials": ended,
            "trials_per_s": (ended - self._n_before) / max(seconds, 1e-9),
            "workers": self._n_workers,
            **front_figures(self._study.store.studies.get(self._study.name), points),
        }
        self._study.view.figures(self._name, ended, figures)

    def _follow(self) -> None:
        wanted = self._study.store.studies.get(self._study.name).config.get("workers", self._n_workers)
        if wanted != self._n_workers:
            self._n_workers = wanted
            self._pool.resize(wanted)


def front_figures(study: StudyRecord, points: Sequence[Trial]) -> dict[str, float]:
    """Figures of a front for the view of a run and its observers: the same that pages, API and report show.

    Args:
        study: The study, with the dense model's cost as its search noted it.
        points: Its front.
    """
    measured = study_volume(study, points)
    if measured is None:
        return {"front": 0, "hypervolume": 0.0}
    return {
        "front": len(points),
        "hypervolume": measured.of(points),
        **dict(zip(("reference_kl", "reference_cost"), measured.reference, strict=False)),
        **dict(zip(("knee_kl", "knee_cost"), best_point(points).values or (), strict=False)),
    }


def _pruner(config: RunConfig) -> Pruner | None:
    if config.pruner == "halving":
        return None
    from optuna import pruners

    made: dict[str, pruners.BasePruner] = {
        "asha": pruners.SuccessiveHalvingPruner(),
        "hyperband": pruners.HyperbandPruner(),
        "median": pruners.MedianPruner(),
        "percentile": pruners.PercentilePruner(50.0),
    }
    return OptunaPruning(made[config.pruner], len(config.fidelities) - 1)


def _keep_effort(study: OpenStudy, engine: SearchEngine, pool: RayPool) -> None:
    """Adds to the known numbers of block computations that were made and spared; keeps the peak memory of workers."""
    run, reused, peak = engine.blocks_run, engine.blocks_reused, pool.peak_bytes

    def added(known: StudyFacts) -> StudyFacts:
        counts = StudyFacts(blocks_run=known.blocks_run + run, blocks_reused=known.blocks_reused + reused)
        if peak is None:
            return counts
        return counts.updated(StudyFacts(peak_worker_bytes=max(known.peak_worker_bytes or 0, peak)))

    study.note(added)

"""Solves a study for another target, from what it knows, and evaluates the best few schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ftp_core.quality.intervals import bootstrap_interval
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.text.encoding import EncodedExample
from search.engine.pruning import Pruner
from search.engine.trial_runner import TrialRunner
from search.errors import SearchError
from search.evaluators import Evaluator, ItemKl
from search.inputs.data import search_set
from search.problem.costs import Costs
from search.problem.objectives import Objectives
from search.problem.space import ScheduleSpace
from search.problem.trial import Values
from search.proposers.additive import AdditiveProposer
from search.stages.fresh_items import ItemResults, fresh_batches, in_batches
from search.stages.open_study import OpenStudy, StoredRouter
from search.stages.search_schedules import schedule_space
from search.stages.sql_trial_store import SqlTrialStore
from search.stages.study_costs import study_costs
from search.stages.workers import search_context, share_of_ablations, start_workers
from studies import Trial, TrialState
from studies.records.confirmed import as_confirmed
from studies.records.target import TARGETS, Target
from studies.records.trial import EVALUATIONS, SOLVED

SolutionKind = Literal["shortened prompt", "known", "solved"]
# Starts what evaluates schedules with a router, on the search set and on batches of other items.
Start = Callable[[OpenStudy, Router, Sequence[Sequence[EncodedExample]]], Evaluator]
# How long waiting for evaluations is deaf to anything else.
_POLL_S = 0.25


@dataclass(frozen=True)
class Solution:
    """A schedule at the target.

    Attributes:
        kind: The shortened prompt, the best trial known before, or one that was solved for.
        schedule: The schedule.
        trial: Number of its trial; None where the study's schedules cannot express it.
        kl: KL on the items that all solutions are compared on, nats per token.
        kl_interval: 95 % bootstrap interval.
        search_kl: KL on the search set.
        share: KL as a share of the shortened prompt's, on the same items; None where that has none.
        share_interval: 95 % bootstrap interval, items being drawn for both together.
        flops_saved: Share of the dense prefill's FLOPs.
        latency_ms: Predicted time of a prefill; None without a profile.
    """

    kind: SolutionKind
    schedule: SparsitySchedule
    trial: int | None
    kl: float
    kl_interval: tuple[float, float]
    search_kl: float
    share: float | None
    share_interval: tuple[float, float] | None
    flops_saved: float
    latency_ms: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        low, high = self.share_interval or (None, None)
        return {
            "kind": self.kind,
            "trial": self.trial,
            "schedule": self.schedule.to_json(),
            "overall_sparsity": self.schedule.overall,
            "flops_saved": self.flops_saved,
            "latency_ms": self.latency_ms,
            "kl": self.kl,
            "kl_low": self.kl_interval[0],
            "kl_high": self.kl_interval[1],
            "search_kl": self.search_kl,
            "share_of_shortened": self.share,
            "share_low": low,
            "share_high": high,
        }


@dataclass(frozen=True)
class Solved:
    """Solutions of a study for a target.

    Attributes:
        study: Name of the study.
        target: The target.
        learned_from: Number of trials that the solutions follow from.
        n_items: Items that solutions are compared on.
        are_fresh: True if these are none of the search set.
        solutions: The solutions, the lowest KL first.
    """

    study: str
    target: Target
    learned_from: int
    n_items: int
    are_fresh: bool
    solutions: tuple[Solution, ...]

    @property
    def best(self) -> Solution:
        """The solution with the lowest KL."""
        return self.solutions[0]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "study": self.study,
            "target": {"kind": self.target.kind, "value": self.target.value},
            "learned_from": self.learned_from,
            "items": self.n_items,
            "items_are_fresh": self.are_fresh,
            "solutions": [one.to_json() for one in self.solutions],
        }


class _GoesOn(Pruner):
    def goes_on(self, number: int, rung: int, values: Values) -> bool:
        return True


def solve(study: OpenStudy, target: Target, n: int, start: Start = start_workers) -> Solved:
    """Proposes the best schedules at a target by a model of what the study knows, and evaluates them.

    The model is that of `additive`, fitted to all trials with the static router. With the shortened prompt and the best
    trial that the study has at the target, solutions are compared on as many fresh items as the search set has, or on
    the search set where the study has none. They become trials of the study, which count for no budget.

    Args:
        study: The study; `search.pipeline.resume_settings.check_solve` has checked that it knows enough.
        target: The target.
        n: Most schedules to solve for.
        start: Starts the workers.

    Raises:
        ConfigError: No schedule reaches the target.
        SearchError: The shortened prompt cannot be evaluated.
    """
    config, n_blocks = study.config, study.workload.model.skipping.n_blocks
    costs = study_costs(study)
    objectives = Objectives(costs.function(config.cost), config.min_accuracy)
    trials = [one for one in study.trials() if one.router is None and one.values is not None and one.is_finite]
    whole = {
        SparsitySchedule.of(one.schedule, n_blocks): one
        for one in as_confirmed(trials)
        if one.state is TrialState.FINISHED and one.fidelity == 1.0 and "kl" in one.metrics
    }
    wanted = _wanted(study, target, n, costs, objectives, trials, whole)
    batches, are_fresh = _batches(study)
    with (
        closing(start(study, StaticRouter(), batches)) as evaluator,
        study.view.stage(f"Evaluating {len(wanted)} schedules at {target}", len(wanted) * (1 + len(batches))) as stage,
    ):
        space = schedule_space(config, n_blocks, costs)
        runner = TrialRunner(space, evaluator, objectives, config.fidelities, _GoesOn(), share_of_ablations(study))
        store = SqlTrialStore(
            study.store, study.name, study.lease, search_context(study, StoredRouter()), costs=costs.of
        )
        evaluated = _evaluated(space, runner, store, [*wanted], whole, stage.advance)
        items = _items(ItemResults(study, batches), len(batches), [*evaluated], evaluator, stage.advance)
    shortened = next(iter(wanted))
    if shortened not in items:
        raise SearchError(f"The shortened prompt at {target} could not be evaluated: see the log, and try again.")
    solutions = []
    for schedule, kind in wanted.items():
        if schedule in items:
            solutions.append(_solution(kind, schedule, evaluated[schedule], items[schedule], items[shortened], costs))
        else:
            study.view.say_once(f"A schedule is left out, as it could not be evaluated: {schedule}")
    solutions.sort(key=lambda one: one.kl)
    return Solved(study.name, target, len(trials), sum(map(len, batches)), are_fresh, tuple(solutions))


def _wanted(
    study: OpenStudy,
    target: Target,
    n: int,
    costs: Costs,
    objectives: Objectives,
    trials: Sequence[Trial],
    whole: Mapping[SparsitySchedule, Trial],
) -> dict[SparsitySchedule, SolutionKind]:
    """The shortened prompt at a target, the best trial there, and what is solved for, in this order."""
    n_blocks, config = study.workload.model.skipping.n_blocks, study.config
    at_target = config.model_copy(update={**dict.fromkeys(TARGETS), target.kind: target.value})
    space = schedule_space(at_target, n_blocks, costs)
    # The genes of a shorter prompt, which those of the study may lack.
    plain = schedule_space(at_target.model_copy(update={"granularity": "block", "kv": "drop"}), n_blocks, costs)
    assert plain.even_at_target is not None
    wanted: dict[SparsitySchedule, SolutionKind] = {plain.schedule(plain.even_at_target): "shortened prompt"}
    known = [one for schedule, one in whole.items() if _meets(space, objectives, schedule, one)]
    if known:
        best = min(known, key=lambda one: (one.values or (), one.number))
        wanted.setdefault(SparsitySchedule.of(best.schedule, n_blocks), "known")
    with study.view.stage("Solving for the target", 1, is_brief=True) as stage:
        proposer = AdditiveProposer(space, config.seed)
        for trial in trials:
            if space.expresses(trial.schedule):
                proposer.tell(trial)
        for indices in proposer.solutions(n):
            wanted.setdefault(space.schedule(indices), "solved")
        stage.advance()
    return wanted


def _batches(study: OpenStudy) -> tuple[list[Sequence[EncodedExample]], bool]:
    """Batches of as many items as the search set has, or a little more, and whether they are fresh."""
    searched, fresh = search_set(study.config, study.workload), fresh_batches(study.config, study.workload)
    batches: list[Sequence[EncodedExample]] = []
    for batch in fresh or in_batches(searched):
        if sum(map(len, batches)) < len(searched):
            batches.append(batch)
    return batches, bool(fresh)


def _solution(
    kind: SolutionKind,
    schedule: SparsitySchedule,
    trial: Trial,
    items: Sequence[ItemKl],
    of_shortened: Sequence[ItemKl],
    costs: Costs,
) -> Solution:
    counts = torch.tensor([float(item.n_tokens) for item in items], dtype=torch.double)
    own, other = (torch.tensor([one.kl for one in kls], dtype=torch.double) * counts for kls in (items, of_shortened))
    is_share = float(other.sum()) > 0
    return Solution(
        kind,
        schedule,
        trial.number if trial.number >= 0 else None,
        float(own.sum() / counts.sum()),
        bootstrap_interval(own, counts),
        trial.metrics["kl"],
        float(own.sum() / other.sum()) if is_share else None,
        bootstrap_interval(own, other) if is_share else None,
        1 - costs.function("flops")(schedule) / costs.dense("flops"),
        None if costs.profile is None else costs.function("latency_ms")(schedule),
    )


def _meets(space: ScheduleSpace, objectives: Objectives, schedule: SparsitySchedule, trial: Trial) -> bool:
    """True if a trial meets a target, and what else its study demands."""
    if not space.expresses(schedule) or not space.contains(space.grid_indices(schedule)):
        return False
    return objectives(schedule, trial.metrics)[1] == 0


def _evaluated(
    space: ScheduleSpace,
    runner: TrialRunner,
    store: SqlTrialStore,
    schedules: Sequence[SparsitySchedule],
    known: Mapping[SparsitySchedule, Trial],
    on_ended: Callable[[], None],
) -> dict[SparsitySchedule, Trial]:
    """Trials of schedules on the whole search set, in their order: known ones, or new ones, which the study keeps.

    They are judged by the study's own constraints, so that its front stays one of schedules that keep these. A trial
    that its genes cannot express is not kept, and has a negative number. Those that fail are missing.
    """
    found = {schedule: known[schedule] for schedule in schedules if schedule in known}
    for _ in found:
        on_ended()

    def keep(trial: Trial) -> None:
        # It is no part of a search, and counts for none.
        trial = replace(trial, metrics={**trial.metrics, EVALUATIONS: 0.0})
        if space.genes.express(trial.schedule):
            [begun] = store.begin([trial])
            trial = replace(trial, number=begun.number)
            store.finish([trial])
        if trial.state is TrialState.FINISHED:
            found[SparsitySchedule.of(trial.schedule)] = trial
        on_ended()

    new = [Trial(-1 - place, one, SOLVED) for place, one in enumerate(schedules) if one not in found]
    waiting = []
    for trial, metrics in zip(new, store.recall(new), strict=True):
        if metrics is None:
            waiting.append(trial)
        else:
            keep(runner.recalled(trial, metrics))
    while waiting or runner:
        while waiting and len(runner) < runner.capacity:
            runner.submit(waiting.pop(0))
        for trial in runner.next_ended(_POLL_S):
            keep(trial)
    return {schedule: found[schedule] for schedule in schedules if schedule in found}


def _items(
    results: ItemResults,
    n_batches: int,
    schedules: Sequence[SparsitySchedule],
    evaluator: Evaluator,
    on_evaluated: Callable[[], None],
) -> dict[SparsitySchedule, list[ItemKl]]:
    """KL of the items of all batches under each schedule; schedules that fail on one are missing."""
    left = [Trial(place, schedule, SOLVED) for place, schedule in enumerate(schedules)]
    items: dict[int, list[ItemKl]] = {trial.number: [] for trial in left}
    for batch in range(n_batches):
        found = results.of(batch, left, evaluator, lambda: False) if left else None
        left = [trial for trial in left if found and trial.number in found]
        for trial in left:
            items[trial.number] += (found or {})[trial.number]
            on_evaluated()
    return {schedules[trial.number]: items[trial.number] for trial in left}

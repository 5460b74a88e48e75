"""Schedules with their routers that a study compares: candidates to select from, and the rows of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ftp_core.schedule import DEFAULT_STEP, MAX_SPARSITY, SparsitySchedule
from search.stages.measure import Variant, timed_prompts
from search.stages.open_study import OpenStudy
from search.stages.study_costs import study_costs
from studies import Measurement, Trial
from studies.pareto import HALF_STEP, best_point, closest_to_sparsity, usable_front
from studies.records.confirmed import as_confirmed
from studies.records.objectives import CostName
from studies.records.target import Target

_T = TypeVar("_T")


def candidates(study: OpenStudy, chosen: Trial) -> list[Variant]:
    """Lists the candidates for selection: points of the front with the chosen one, and trials that were asked for.

    At a target, points of the front are the trials with the lowest KL there, of the first search and of the refinements
    the same number: a search that tried hundreds on a few items has found some that are good by luck, only other items
    tell, and the report shall compare with the best of the first search as they tell it.
    """
    config, trials = study.config, as_confirmed(study.trials())
    most = config.measured_points
    if config.target is None:
        points = _spread(usable_front(trials), most, chosen)
    else:
        refined = best_at([trial for trial in trials if trial.round > 0], config.target, most // 2)
        first = best_at([trial for trial in trials if trial.round == 0], config.target, most - len(refined))
        points = [*first, *refined]
        if all(point.number != chosen.number for point in points):
            points = [chosen, *points][:most]
    asked = config.asked_trials - {point.number for point in points}
    points += [trial for trial in trials if trial.number in asked]
    return [_of_trial("candidate", study, point) for point in points]


def dense(study: OpenStudy) -> Variant:
    """The dense model."""
    return Variant("dense", SparsitySchedule.uniform(0.0, study.workload.model.skipping.n_blocks))


def compared(
    study: OpenStudy, selected: Trial, router_run: int | None, validated: Sequence[Measurement]
) -> list[Variant]:
    """Lists the rows of the report: dense, uniform, static, dynamic, and refined, at the sparsity that was selected.

    The uniform one is a shortened prompt. It has the FLOPs that were selected, or where a speed-up is the target, the
    time that is predicted for what was selected: where blocks skip unevenly, or a router has to be run, those are other
    than its overall sparsity would save. The dynamic one has the router that was distilled on what the first search
    found. Others are chosen by the validated candidates, where there are any.
    """
    trials = [trial for trial in study.trials() if trial.is_comparable]
    by_number = {one.trial: one.kl for one in validated}
    target = study.config.target
    first = _like(selected, [trial for trial in trials if trial.round == 0], by_number, target)
    refined = _like(selected, [trial for trial in trials if trial.round > 0], by_number, target)
    static, refined = (selected, refined) if selected.round == 0 else (first, selected)
    rows = [dense(study), Variant("uniform", _shortened(study, selected))]
    if static is not None:
        rows.append(_of_trial("static", study, static))
        if router_run is not None and any(static.schedule):
            schedule = SparsitySchedule.of(static.schedule)
            rows.append(Variant("dynamic", schedule, study.router(router_run), static.number))
    return rows if refined is None else [*rows, _of_trial("refined", study, refined)]


def _shortened(study: OpenStudy, selected: Trial) -> SparsitySchedule:
    """The uniform schedule whose cost with the static router is nearest to that of a trial with its own."""
    model, (_, length) = study.workload.model.skipping, timed_prompts(study).ids.shape
    target = study.config.target
    cost: CostName = "latency_ms" if target is not None and target.kind == "target_speedup" else "flops"
    wanted = study_costs(study, study.router(selected.router)).function(cost)(SparsitySchedule.of(selected.schedule))
    own = study_costs(study).function(cost)
    # Kept counts at this length tell uniform schedules apart. Of equals the one on the grid is taken; the others are
    # rounded up as schedules round, lest they keep one token more.
    grid = [DEFAULT_STEP * level for level in range(round(MAX_SPARSITY / DEFAULT_STEP) + 1)]
    between = [math.ceil(1e10 * (1 - count / length)) / 1e10 for count in range(1, length)]
    shares = [*grid, *(share for share in between if share <= MAX_SPARSITY)]
    uniform = [SparsitySchedule.uniform(share, model.n_blocks) for share in shares]
    return min(uniform, key=lambda schedule: abs(own(schedule) - wanted))


def _of_trial(name: str, study: OpenStudy, trial: Trial) -> Variant:
    return Variant(name, SparsitySchedule.of(trial.schedule), study.router(trial.router), trial.number)


def _like(
    selected: Trial, trials: Sequence[Trial], kl: Mapping[int | None, float], target: Target | None
) -> Trial | None:
    """The trial to compare a selected one with, at its cost or overall sparsity; None if there is no trial.

    That is the one with the lowest KL on validation examples, given by number of the trial, if any is known there, else
    on the search set. Not of their front, which may have dropped the best one there for another that is cheaper by a
    hair.
    """
    is_cost = target is not None and target.sparsity is None
    near = [trial for trial in trials if is_cost or _is_near(trial, selected.overall_sparsity)]
    known = [trial for trial in near if trial.number in kl]
    if known:
        return min(known, key=lambda trial: (kl[trial.number], trial.number))
    if is_cost:
        return best_point(trials, target) if trials else None
    return closest_to_sparsity(trials, selected.overall_sparsity) if trials else None


def _is_near(trial: Trial, sparsity: float) -> bool:
    return abs(trial.overall_sparsity - sparsity) <= HALF_STEP


def best_at(trials: Sequence[Trial], target: Target, most: int) -> list[Trial]:
    """The trials with the lowest KL at a target, the best first; none where no trial has it."""
    sparsity = target.sparsity
    # What can be compared keeps the limits of its study.
    near = [t for t in trials if t.is_comparable and _is_near(t, t.overall_sparsity if sparsity is None else sparsity)]
    return sorted(near, key=lambda trial: (trial.values or (), trial.number))[:most]


def evenly_spread(among: Sequence[_T], most: int) -> list[_T]:
    """At most so many, evenly spread over a sequence, its ends included."""
    if len(among) <= most:
        return list(among)
    return [among[round(rank * (len(among) - 1) / max(1, most - 1))] for rank in range(most)]


def _spread(points: Sequence[Trial], most: int, chosen: Trial) -> list[Trial]:
    """At most `most` points of a front, evenly spread along it, the chosen one among them."""
    points = evenly_spread(points, most)
    if all(point.number != chosen.number for point in points):
        nearest = min(range(len(points)), key=lambda i: abs(points[i].overall_sparsity - chosen.overall_sparsity))
        points[nearest] = chosen
    return points

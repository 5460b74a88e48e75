"""Confirms the best trials of a search on fresh items, those of the calibration set that it did not see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from search.config.run_config import RunConfig
from search.engine.racing import Contender, Race, estimates
from search.evaluators import Evaluator
from search.inputs.data import Workload, search_set
from search.stages.candidates import best_at, evenly_spread
from search.stages.fresh_items import ItemResults, fresh_batches
from search.stages.open_study import OpenStudy, StoredRouter
from studies import Trial, TrialState, best_point
from studies.pareto import log_kl, usable_front
from studies.records.confirmed import CONFIRMED_KL, FRESH_ITEMS, FRESH_KL
from studies.records.study_facts import Confirmation, StudyFacts
from studies.records.target import Target

# Most of what a race evaluates, as a share of the items that its search evaluated.
SHARE = 0.15
# A KL that is higher than the front's by no more may be the lower one on other items: the noise of a few dozen items.
_NOISE = math.log(1.15)


def race_size(config: RunConfig, workload: Workload, trials: float) -> tuple[int, int]:
    """Number of trials that race after a search of so many, and most items that they are evaluated on, added up."""
    batches = fresh_batches(config, workload)
    if not batches:
        return 0, 0
    most = int(SHARE * trials * len(search_set(config, workload)))
    n = min(config.confirm, most // len(batches[0]))
    return (n, min(most, n * sum(map(len, batches)))) if n > 1 else (0, 0)


def confirmation_is_due(study: OpenStudy, number: int) -> bool:
    """Tells whether the trials of a search have not been confirmed since it last went on; the first one is number 0."""
    known = study.facts.confirmation_of(number)
    n_trials = sum(trial.round == number for trial in study.store.trials.each(study.name))
    return study.config.confirm > 0 and (known is None or known.searched != n_trials)


def confirm(
    study: OpenStudy, number: int, router: StoredRouter, evaluator: Evaluator, is_asked_to_stop: Callable[[], bool]
) -> None:
    """Lets the best trials of a search race on fresh items, and keeps what these say of them among their metrics.

    Evaluations are kept one by one, so that a race that was stopped goes on where it was. Nothing that it finds depends
    on timing or on the number of workers.

    Args:
        study: The study.
        number: Number of the search, which has ended.
        router: Its router.
        evaluator: Evaluates schedules with it; the `fresh_batches` are the parts behind those of the search set.
        is_asked_to_stop: Asked all the time: what is in flight then ends, and nothing is concluded.
    """
    if not confirmation_is_due(study, number):
        return
    own = [trial for trial in study.trials() if trial.round == number]
    batches = fresh_batches(study.config, study.workload)
    evaluated = sum(min(trial.fidelity, trial.evaluations) for trial in own if trial.state is not TrialState.FAILED)
    n, most = race_size(study.config, study.workload, evaluated)
    best = best_of([trial for trial in own if trial.router == router.number], n, study.config.target)
    if len(best) < 2:
        said = (
            f"{len(own)} trials are too few to race on fresh items for {SHARE:.0%} of what they took."
            if batches
            else "the search set is the whole calibration set: give more --calibration-items than --search-items."
        )
        study.note(_with(Confirmation(number, len(own), said=f"No trial was confirmed, as {said}")))
        if not batches:
            study.view.say_once(f"No trial is confirmed, as {said}")
        return
    results = ItemResults(study, batches)
    race = Race(
        [(trial.values or ())[-1] for trial in best],
        [len(batch) for batch in batches],
        most,
        by_cost=study.config.target is None,
    )
    with study.view.stage("Confirming the best on fresh items", most) as stage:
        while (batch := race.next_batch()) is not None:
            found = results.of(batch, [best[place] for place in race.leading], evaluator, is_asked_to_stop)
            if found is None:
                return
            race.take({place: found[best[place].number] for place in race.leading if best[place].number in found})
            stage.advance(sum(map(len, found.values())), f"{len(race.leading)} of {len(best)} trials lead")
    _conclude(study, number, own, dict(zip([trial.number for trial in best], race.contenders, strict=True)), results)


def best_of(trials: Sequence[Trial], n: int, target: Target | None) -> list[Trial]:
    """The trials of a search to confirm, at most `n`.

    At a target these are the ones with the lowest KL there. Without a target, half of them are spread over the
    front, and the others are those whose cost is nearest to the knee's, of the front or within the noise of it.
    """
    trials = [trial for trial in trials if trial.is_comparable and any(trial.schedule)]
    if target is not None:
        return best_at(trials, target, n)
    if not trials:
        return []
    points = usable_front(trials)
    knee = best_point(points)
    kl, costs = (np.array([(trial.values or ())[place] for trial in trials]) for place in (0, -1))
    order = np.lexsort((kl, costs))
    least = np.empty(len(trials))
    # The lowest KL of what costs no more.
    least[order] = np.minimum.accumulate(kl[order])
    near = [trials[place] for place in np.flatnonzero(log_kl(kl) - log_kl(least) <= _NOISE)]
    near.sort(key=lambda one: (abs((one.values or ())[-1] - (knee.values or ())[-1]), one.number))
    wanted = {one.number: one for one in [knee, *evenly_spread(points, n // 2), *near]}
    return sorted(list(wanted.values())[:n], key=lambda one: one.number)


def _conclude(
    study: OpenStudy, number: int, own: Sequence[Trial], race: Mapping[int, Contender], results: ItemResults
) -> None:
    """Keeps what a race found, by number of the trial, in one transaction."""
    raced = [trial for trial in own if trial.number in race and race[trial.number].items]
    contenders = [race[trial.number] for trial in raced]
    if not contenders:
        said = "No trial was confirmed, as none could be evaluated on fresh items."
        study.note(_with(Confirmation(number, len(own), said=said)))
        return
    # Of those that saw most items, the best.
    leader = min(contenders, key=lambda one: (one.is_out, -len(one.items), one.kl()))
    scale = _scale(study, leader, results)
    fresh = [scale * kl for kl in estimates(contenders, leader)]
    searched = [(trial.values or ())[0] for trial in raced]
    raised = sum(fresh) / sum(searched) if sum(searched) > 0 else 1.0
    n_searched, n_fresh = len(search_set(study.config, study.workload)), len(leader.items)
    confirmed = []
    for trial, contender, before, now in zip(raced, contenders, searched, fresh, strict=True):
        # Among trials that are equally likely to be good, those are the best whose mean over all items is the lowest,
        # however they were chosen; but the search set's share of it must not make those look better of which it is
        # the larger.
        mean = (n_searched * raised * before + n_fresh * now) / (n_searched + n_fresh)
        metrics = {FRESH_KL: now, FRESH_ITEMS: float(len(contender.items)), CONFIRMED_KL: mean}
        confirmed.append(replace(trial, metrics={**trial.metrics, **metrics}))
    by_search = min(raced, key=lambda trial: trial.values or ())
    found = Confirmation(
        number,
        len(own),
        trials=len(raced),
        items=n_fresh,
        evaluated=sum(len(one.items) for one in contenders),
        told_apart=sum(one.is_out for one in contenders),
        optimism=raised - 1.0,
        best=min(confirmed, key=lambda trial: trial.metrics[CONFIRMED_KL]).number,
        best_before=by_search.number,
    )
    if study.config.target is None:
        # Trials of other costs have no order.
        found = replace(found, best=None, best_before=None)
    study.lease.check()
    study.store.revaluation.apply(study.name, confirmed, _with(found)(study.facts))


def _scale(study: OpenStudy, leader: Contender, results: ItemResults) -> float:
    """The factor by which KL on fresh items becomes that on the items of an earlier race.

    A race of few trials sees fewer items, and others than one of many. So the best of earlier ones stays the measure.
    """
    earlier = [trial for trial in study.trials() if FRESH_KL in trial.metrics]
    if not earlier:
        return 1.0
    first = min(earlier, key=lambda one: (-one.metrics[FRESH_ITEMS], one.metrics[FRESH_KL], one.number))
    anchor = Contender(0.0, results.all_known(first))
    if not anchor.items:
        return 1.0
    [now] = estimates([anchor], leader)
    return first.metrics[FRESH_KL] / now if now > 0 else 1.0


def _with(one: Confirmation) -> Callable[[StudyFacts], StudyFacts]:
    return lambda known: StudyFacts(confirmations=known.with_confirmation(one))

"""The course of a study's refinements, each a distillation and a search with the router that came of it."""

from __future__ import annotations

import math
from dataclasses import replace

from studies.pareto import WORTHWHILE_GROWTH, front_growth
from studies.records.study_facts import Round, StudyFacts


def begun(one: Round, first_trial: int, hypervolume: float) -> Round:
    """The round as its search begins; one that has begun stays as it is."""
    if one.first_trial is not None:
        return one
    return replace(one, first_trial=first_trial, hypervolume_before=hypervolume)


def ended(one: Round, trials: int, hypervolume: float) -> Round:
    """The round as its search has ended."""
    return grown(replace(one, trials=trials), one.hypervolume_before, hypervolume)


def grown(one: Round, before: float, after: float | None) -> Round:
    """The round with the hypervolume of the front as its search began and ended; `after` is None before the end."""
    growth = None if after is None else front_growth(before, after)
    finite = growth if growth is not None and math.isfinite(growth) else None
    return replace(one, hypervolume_before=before, hypervolume_after=after, growth=finite)


def was_worthwhile(one: Round) -> bool:
    """Tells whether the front grew by so much that another round may make it grow again."""
    if one.hypervolume_before == 0:
        return bool(one.hypervolume_after)
    return (one.growth or 0.0) > WORTHWHILE_GROWTH


def why_last(one: Round) -> str:
    """The reason why no further round follows on this one, as a sentence; empty if one may help."""
    if one.router is None:
        return (
            f"Rounds ended in round {one.round}: no trained router beats the static one on "
            "validation examples, and to search again with the static one is to go on with the first search, which "
            "more --trials do."
        )
    if one.hypervolume_after is None or was_worthwhile(one):
        return ""
    by_how_much = "at all" if one.growth is None else f"by more than {WORTHWHILE_GROWTH:.0%} ({one.growth:+.2%})"
    return f"Rounds ended after round {one.round}: it did not make the hypervolume of the front grow {by_how_much}."


def last_number(facts: StudyFacts) -> int:
    """Number of the last round; 0 before the first one."""
    return max((one.round for one in facts.rounds), default=0)


def fresh_rounds(facts: StudyFacts) -> StudyFacts:
    """The change by which rounds begin anew behind those that there were: the first search has gone on."""
    return StudyFacts(first_round=last_number(facts) + 1, rounds_ended="")

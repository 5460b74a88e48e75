"""What a study remembers of its refinements, each a distillation and a search with the router that came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from studies import front_growth
from studies.pareto import WORTHWHILE_GROWTH

_FACT, _FIRST, _ENDED = "rounds", "first_round", "rounds_ended"


@dataclass(frozen=True)
class Round:
    """One refinement.

    Attributes:
        round: Its number, from 1.
        router_run: Number of the router that was distilled for it.
        router: Number of the router that decides in its trials; None because the distilled one was no better than the
            static one on the validation examples, so that there was nothing to search again with. (Earlier versions
            searched with the static one then.)
        first_trial: Number of its first trial; None until its search begins.
        trials: Trials that ended in it.
        hypervolume_before: Of the front as the search began, see `studies.front_volume`.
        hypervolume_after: As it ended; None until then.
    """

    round: int
    router_run: int
    router: int | None
    first_trial: int | None = None
    trials: int = 0
    hypervolume_before: float = 0.0
    hypervolume_after: float | None = None

    @property
    def growth(self) -> float | None:
        """Share by which hypervolume grew; None before the end, and where it began at nothing."""
        return None if self.hypervolume_after is None else front_growth(self.hypervolume_before, self.hypervolume_after)

    @property
    def was_worthwhile(self) -> bool:
        """Whether the front grew by so much that another round may make it grow again."""
        if self.hypervolume_before == 0:
            return bool(self.hypervolume_after)
        return (self.growth or 0.0) > WORTHWHILE_GROWTH

    @property
    def why_last(self) -> str:
        """Why no further round follows on this one, as a sentence; empty if one may help."""
        if self.router is None:
            return (
                f"Rounds ended in round {self.round}: no trained router beats the static one on "
                "validation examples, and to search again with the static one is to go on with the first search, which "
                "more --trials do."
            )
        if self.hypervolume_after is None or self.was_worthwhile:
            return ""
        grown = "at all" if self.growth is None else f"by more than {WORTHWHILE_GROWTH:.0%} ({self.growth:+.2%})"
        return f"Rounds ended after round {self.round}: it did not make the hypervolume of the front grow {grown}."

    def begun(self, first_trial: int, hypervolume: float) -> Round:
        """The round as its search begins; one that has begun stays as it is."""
        if self.first_trial is not None:
            return self
        return replace(self, first_trial=first_trial, hypervolume_before=hypervolume)

    def ended(self, trials: int, hypervolume: float) -> Round:
        """The round as its search has ended."""
        return replace(self, trials=trials, hypervolume_after=hypervolume)


def rounds_of(facts: Mapping[str, Any]) -> dict[int, Round]:
    """The rounds that a study knows of, by number."""
    names = Round.__dataclass_fields__
    found = [Round(**{name: value for name, value in one.items() if name in names}) for one in facts.get(_FACT, [])]
    return {one.round: one for one in found}


def with_round(facts: Mapping[str, Any], one: Round) -> dict[str, Any]:
    """The fact that says the same as before, and this of one round."""
    known = {**rounds_of(facts), one.round: one}
    return {_FACT: [asdict(known[number]) | {"growth": _finite(known[number].growth)} for number in sorted(known)]}


def with_end(reason: str) -> dict[str, Any]:
    """The fact that rounds ended, and why; empty while they may go on."""
    return {_ENDED: reason}


def first_round(facts: Mapping[str, Any]) -> int:
    """Number of the first round since the first search last ended."""
    return int(facts.get(_FIRST, 1))


def with_fresh_rounds(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fact that rounds begin anew behind those that there were: the first search has gone on."""
    return {_FIRST: max(rounds_of(facts), default=0) + 1, **with_end("")}


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None

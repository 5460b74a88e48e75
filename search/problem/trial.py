"""What is proposed, and what became of it, as proposers learn it."""

from __future__ import annotations

from dataclasses import dataclass

Levels = tuple[int, ...]
Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to evaluate next.

    Attributes:
        levels: Steps of sparsity, one per block.
        parents: What was evaluated that it is made from, each once; empty if it comes from no schedule in particular,
            but from chance, or from a model of all of them.
    """

    levels: Levels
    parents: tuple[Levels, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one evaluation.

    Attributes:
        levels: What was evaluated: steps of sparsity, one per block.
        values: Objective values, lower is better.
        violation: By how much it breaks the constraints; 0 if it keeps them.
        fidelity: Share of the search set that it was evaluated on; less than 1 if it was stopped there.
        number: Of its trial; None if that is none of this study.
    """

    levels: Levels
    values: Values
    violation: float = 0.0
    fidelity: float = 1.0
    number: int | None = None

    @property
    def penalty(self) -> float:
        """Orders what cannot be compared by its values: lower is better, 0 is a whole evaluation of a legal schedule.

        Of two outcomes with different penalties the lower one is better whatever their values (Deb's feasibility rule,
        2000); values are compared between equal penalties only, so at equal fidelity only.
        """
        return self.violation + 2.0 * (1.0 - self.fidelity)

    @property
    def is_finite(self) -> bool:
        """Whether values and penalty are finite: nothing can be learned from others."""
        # It loads Optuna, which whoever only names proposers does not wait for.
        from studies import finite_values

        return finite_values((*self.values, self.penalty))

    @property
    def is_comparable(self) -> bool:
        """Whether it is a whole evaluation of a legal schedule, with finite values; see `Trial.is_comparable`."""
        return self.penalty == 0 and self.is_finite

"""What became of a proposed schedule, as proposers learn it."""

from __future__ import annotations

from dataclasses import dataclass

Levels = tuple[int, ...]
Values = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one evaluation.

    Attributes:
        levels: What was evaluated: steps of sparsity, one per block.
        values: Objective values, lower is better.
        violation: By how much it breaks the constraints; 0 if it keeps them.
        fidelity: Share of the search set that it was evaluated on; less than 1 if it was stopped there.
    """

    levels: Levels
    values: Values
    violation: float = 0.0
    fidelity: float = 1.0

    @property
    def penalty(self) -> float:
        """Orders what cannot be compared by its values: lower is better, 0 is a whole evaluation of a legal schedule.

        Of two outcomes with different penalties the lower one is better whatever their values (Deb's feasibility rule,
        2000); values are compared between equal penalties only, so at equal fidelity only.
        """
        return self.violation + 2.0 * (1.0 - self.fidelity)

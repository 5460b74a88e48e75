"""Keeps what schedules cost beside what was found out about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ftp_core.schedule import SparsitySchedule
from search.engine.trial_store import Begun, Known, Ledger, Queued, Result
from search.evaluators import Evaluation
from search.proposers.proposer_stats import ProposerTally
from studies.records.objectives import COSTS


class CostLedger:
    """A ledger whose trials have their costs among their metrics, whichever of them is the objective.

    Costs are the study's own. What other studies found out comes without theirs, which may be of another input.

    Args:
        ledger: Where trials are written down.
        costs: Costs of a schedule, by name.
    """

    def __init__(self, ledger: Ledger, costs: Callable[[SparsitySchedule], Mapping[str, float]]) -> None:
        self._ledger = ledger
        self._costs = costs

    def known(self) -> Iterable[Known]:
        """See `Ledger.known`."""
        return self._ledger.known()

    def queue(self) -> Sequence[Queued]:
        """See `Ledger.queue`."""
        return self._ledger.queue()

    def recall(self, schedules: Sequence[SparsitySchedule]) -> Sequence[Evaluation | None]:
        """See `Ledger.recall`."""
        return [None if one is None else _without_costs(one) for one in self._ledger.recall(schedules)]

    def begin(self, begun: Sequence[Begun]) -> Sequence[int]:
        """See `Ledger.begin`."""
        return self._ledger.begin(begun)

    def finish(self, results: Sequence[Result]) -> None:
        """See `Ledger.finish`; a trial that failed is left as it is."""
        self._ledger.finish([one if one.outcome is None else self._with_costs(one) for one in results])

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        """See `Ledger.tally`."""
        self._ledger.tally(tallies)

    def _with_costs(self, result: Result) -> Result:
        evaluation = result.evaluation
        metrics = {**evaluation.metrics, **self._costs(evaluation.schedule)}
        return replace(result, evaluation=replace(evaluation, metrics=metrics))


def _without_costs(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, metrics={k: v for k, v in evaluation.metrics.items() if k not in COSTS})

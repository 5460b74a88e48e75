"""Protocol of the store that keeps the engine's trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from search.proposers.proposer_stats import ProposerStatistics
from studies import Trial


class TrialStore(Protocol):
    """Keeps what the engine does, before it goes on."""

    def known(self) -> Iterable[Trial]:
        """The trials of the study that have ended, by number; asked for once or twice, before any trial is begun.

        Those without metrics count as failed: nothing says what their objective values come from.
        """

    def queue(self) -> Sequence[Trial]:
        """Trials that a process began and did not end: they are the engine's now."""

    def recall(self, trials: Sequence[Trial]) -> Sequence[Mapping[str, float] | None]:
        """Metrics that other studies found for the schedules of trials, on the whole search set."""

    def begin(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        """Notes that trials will be evaluated; gives them with the numbers that they got."""

    def finish(self, trials: Sequence[Trial]) -> None:
        """Keeps trials that have ended, all of them or none."""

    def note_statistics(self, statistics: Mapping[str, ProposerStatistics]) -> None:
        """Notes what each proposer, by name, has done so far; called after results."""

"""What the engine asks of whoever keeps its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ftp_core.schedule import SparsitySchedule
from search.evaluators import Evaluation
from search.problem.trial import Outcome
from search.proposers.proposer_stats import ProposerTally


@dataclass(frozen=True)
class Known:
    """A trial of the study that has ended.

    Attributes:
        number: Its number.
        schedule: What was evaluated.
        proposer: Who proposed it.
        metrics: What was found out; None if it failed, or if nobody said what its objective values come from.
        fidelity: Share of the search set that it was evaluated on.
        seconds: Time that it took.
    """

    number: int
    schedule: SparsitySchedule
    proposer: str
    metrics: Mapping[str, float] | None
    fidelity: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Begun:
    """A schedule that will be evaluated.

    Attributes:
        schedule: What was proposed.
        proposer: By whom.
        parents: Numbers of the trials that it was made from.
    """

    schedule: SparsitySchedule
    proposer: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Queued:
    """A schedule whose evaluation was begun by a process that died.

    Attributes:
        number: Of its trial.
        schedule: What was proposed.
        proposer: By whom.
        parents: Numbers of the trials that it was made from.
    """

    number: int
    schedule: SparsitySchedule
    proposer: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """How a trial ended.

    Attributes:
        number: Its number.
        proposer: Who proposed it.
        evaluation: All that was evaluated of it.
        outcome: What it is worth; None if it failed.
        parents: Numbers of the trials that it was made from.
        attempts: What evaluators gave back for it, one by one: parts of the search set, and what failed.
    """

    number: int
    proposer: str
    evaluation: Evaluation
    outcome: Outcome | None
    parents: tuple[int, ...] = ()
    attempts: tuple[Evaluation, ...] = ()


class Ledger(Protocol):
    """Where the engine writes down what it does, before it goes on."""

    def known(self) -> Iterable[Known]:
        """The trials of the study that have ended, by number; asked for once or twice, before anything is begun."""

    def queue(self) -> Sequence[Queued]:
        """What was begun and has not ended: it is the engine's now."""

    def recall(self, schedules: Sequence[SparsitySchedule]) -> Sequence[Evaluation | None]:
        """What other studies have found out about schedules, on the whole search set."""

    def begin(self, begun: Sequence[Begun]) -> Sequence[int]:
        """Note that schedules will be evaluated; gives their trials' numbers."""

    def finish(self, results: Sequence[Result]) -> None:
        """Keep results, all of them or none."""

    def tally(self, tallies: Mapping[str, ProposerTally]) -> None:
        """Note what each proposer, by name, has done so far; called after results."""

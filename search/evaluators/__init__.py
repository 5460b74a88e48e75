"""Evaluators: where a schedule is turned into figures.

The engine knows them by the `Evaluator` protocol alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from ftp_core.schedule import SparsitySchedule

# Both must be set before Ray is imported: no usage report, and no warning about accelerators that are not asked for.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@dataclass(frozen=True)
class Task:
    """What to evaluate: a schedule on one part of the search set.

    Attributes:
        schedule: One sparsity per block.
        part: Which part. Part 0 are the first items, up to the first fidelity; part 1 those from there to the second;
            a search with one fidelity has one part.
    """

    schedule: SparsitySchedule
    part: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found out about one schedule.

    Attributes:
        task: What was evaluated.
        metrics: Figures by name, `kl` among them; empty if it failed.
        n_tokens: Completion tokens that the figures are means over.
        n_choice_items: Multiple-choice items that `accuracy` is a mean over.
        seconds: Time that it took on the worker.
        error: What went wrong, if it failed.
        blocks_run: Block computations that were made.
        blocks_reused: Block computations whose results were still known from other schedules.
        worker: Who evaluated it: a number among the workers of a search, on a cluster with the host's name; None if
            nobody did.
        began_at: When, by that worker's clock: seconds since 1970; of joined parts that of the last.
    """

    task: Task
    metrics: Mapping[str, float] = field(default_factory=dict)
    n_tokens: int = 1
    n_choice_items: int = 0
    seconds: float = 0.0
    error: str | None = None
    blocks_run: int = 0
    blocks_reused: int = 0
    worker: str | None = None
    began_at: float | None = None

    @property
    def schedule(self) -> SparsitySchedule:
        """The task's schedule."""
        return self.task.schedule

    def joined(self, later: Evaluation) -> Evaluation:
        """Both parts of the search set as one: means over the tokens, or the items, of both."""
        n, n_items = self.n_tokens + later.n_tokens, self.n_choice_items + later.n_choice_items
        metrics = {}
        for name in [*self.metrics, *(name for name in later.metrics if name not in self.metrics)]:
            one, other = self.metrics.get(name, 0.0), later.metrics.get(name, 0.0)
            if name == "accuracy":
                # A part may have no multiple-choice item.
                metrics[name] = (self.n_choice_items * one + later.n_choice_items * other) / n_items
            elif name == "perplexity":
                metrics[name] = math.exp((self.n_tokens * math.log(one) + later.n_tokens * math.log(other)) / n)
            else:
                metrics[name] = (self.n_tokens * one + later.n_tokens * other) / n
        return replace(
            later,
            metrics=metrics,
            n_tokens=n,
            n_choice_items=n_items,
            seconds=self.seconds + later.seconds,
            blocks_run=self.blocks_run + later.blocks_run,
            blocks_reused=self.blocks_reused + later.blocks_reused,
        )


class Evaluator(Protocol):
    """Evaluates tasks, several at a time."""

    @property
    def capacity(self) -> int:
        """How many tasks should be in flight to keep every worker busy; it may change as workers come and go."""

    def submit(self, task: Task) -> None:
        """Start evaluating; equal tasks are never in flight together."""

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        """Wait for submitted tasks to be done.

        A task whose evaluation fails comes back with its error; whether it is tried again is for the engine to say.

        Args:
            timeout_s: How long at most; None waits for ever.

        Returns:
            All that are done, in the order in which they were; empty only if the time is up.
        """

    def close(self) -> None:
        """Release workers; what is in flight is dropped."""

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


# Part of a task: see `Task.part`.
ABLATION_PART = -1


@dataclass(frozen=True)
class Task:
    """The evaluation of a schedule on one part of the search set.

    Attributes:
        schedule: One sparsity per block.
        part: Number of the part. Part 0 are the first items, up to the first fidelity, part 1 those from there to the
            second; a search with one fidelity has one part. Behind them come the batches of fresh items, which are not
            of the search set. `ABLATION_PART` are first items for ablations, where these have a fidelity of their own.
    """

    schedule: SparsitySchedule
    part: int = 0


@dataclass(frozen=True)
class ItemKl:
    """KL of one item.

    Attributes:
        kl: Mean over the tokens of its completion.
        n_tokens: Number of these tokens.
    """

    kl: float
    n_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """Result of a task.

    Attributes:
        task: The task.
        metrics: Figures by name, `kl` among them; empty if it failed.
        n_tokens: Completion tokens that the figures are means over.
        n_choice_items: Multiple-choice items that `accuracy` is a mean over.
        items: KL of each item, of a batch of fresh items; empty for a part of the search set.
        seconds: Time that it took on the worker.
        error: Reason of its failure; None if it did not fail.
        blocks_run: Block computations that were made.
        blocks_reused: Block computations whose results were still known from other schedules.
        worker: Number of the worker among those of a search, on a cluster with the host's name; None without one.
        began_at: Time of the beginning by that worker's clock, in seconds since 1970; of joined parts that of the last.
        peak_bytes: Most memory that the worker has held so far, beside what it shares with others; None if unknown.
    """

    task: Task
    metrics: Mapping[str, float] = field(default_factory=dict)
    n_tokens: int = 1
    n_choice_items: int = 0
    items: tuple[ItemKl, ...] = ()
    seconds: float = 0.0
    error: str | None = None
    blocks_run: int = 0
    blocks_reused: int = 0
    worker: str | None = None
    began_at: float | None = None
    peak_bytes: int | None = None

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
            peak_bytes=max(self.peak_bytes or 0, later.peak_bytes or 0) or None,
        )


class Evaluator(Protocol):
    """Evaluates tasks, several at a time."""

    @property
    def capacity(self) -> int:
        """Number of tasks in flight that keeps every worker busy; it may change as workers come and go."""

    def submit(self, task: Task) -> None:
        """Starts to evaluate a task; equal tasks are never in flight together."""

    def next_results(self, timeout_s: float | None = None) -> list[Evaluation]:
        """Waits for submitted tasks, and returns those that are done in the order of their ends.

        A failed evaluation has its error; whether its task is tried again is for the engine to say.

        Args:
            timeout_s: Longest wait, after which nothing may be returned; None waits for ever.
        """

    def close(self) -> None:
        """Releases the workers; what is in flight is dropped."""

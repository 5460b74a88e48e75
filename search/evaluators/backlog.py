"""Assigns to each worker the task that shares most with its recent ones.

The hidden states after block i depend only on `s_0 ... s_i`, so a worker that remembers them computes the less of a
schedule, the longer the prefix that it shares with one of those before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from search.evaluators import Task

# Tasks of a worker that count as recent: about as many as a common prefix cache holds.
RECENT = 32

_Prefix = tuple[int, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    task: Task
    prefixes: list[_Prefix]
    # Numbers of takes, and of older tasks that waited, when the task came: see `Backlog._passed_over`.
    n_taken: int
    n_older: int


class Backlog:
    """Tasks that wait for a worker.

    A worker takes the task with the longest prefix (part, and leading sparsities) in common with one of its recent
    tasks; of equally long ones the oldest. A task that has been passed over `patience` times goes first.

    Args:
        patience: Most younger tasks that may overtake a task.
        recent: Number of recent tasks of a worker.
    """

    def __init__(self, patience: int, recent: int = RECENT) -> None:
        self.patience = patience
        self._n_recent = recent
        self._recent: dict[Hashable, deque[list[_Prefix]]] = {}
        self._returned: deque[Task] = deque()
        # Both in the order in which the tasks came, which is that of their numbers.
        self._waiting: dict[int, _Waiting] = {}
        self._by_prefix: dict[_Prefix, dict[int, None]] = {}
        self._n_added = 0
        self._n_taken = 0

    def __len__(self) -> int:
        return len(self._returned) + len(self._waiting)

    def add(self, task: Task) -> None:
        """Adds a task."""
        number, self._n_added = self._n_added, self._n_added + 1
        waiting = _Waiting(task, _prefixes(task), self._n_taken, len(self._waiting))
        self._waiting[number] = waiting
        for prefix in waiting.prefixes:
            self._by_prefix.setdefault(prefix, {})[number] = None

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Returns taken tasks, ahead of all others."""
        self._returned.extend(tasks)

    def take(self, worker: Hashable) -> Task | None:
        """The next task of a worker; None if none waits."""
        if self._returned:
            task = self._returned.popleft()
            prefixes = _prefixes(task)
        elif self._waiting:
            oldest = next(iter(self._waiting))
            number = oldest if self._passed_over(oldest) >= self.patience else self._nearest(worker, oldest)
            waiting = self._waiting.pop(number)
            self._n_taken += 1
            for prefix in waiting.prefixes:
                numbers = self._by_prefix[prefix]
                del numbers[number]
                if not numbers:
                    del self._by_prefix[prefix]
            task, prefixes = waiting.task, waiting.prefixes
        else:
            return None
        self._recent.setdefault(worker, deque(maxlen=self._n_recent)).append(prefixes)
        return task

    def forget(self, worker: Hashable) -> None:
        """Forgets the recent tasks of a worker that is gone or was restarted."""
        self._recent.pop(worker, None)

    def _passed_over(self, oldest: int) -> int:
        """Number of younger tasks that overtook the oldest one."""
        waiting = self._waiting[oldest]
        return self._n_taken - waiting.n_taken - waiting.n_older

    def _nearest(self, worker: Hashable, oldest: int) -> int:
        """The waiting task that shares the longest prefix with the worker's recent ones, else the oldest."""
        known, length, nearest = self._by_prefix, 0, oldest
        for prefixes in reversed(self._recent.get(worker, ())):
            # Where a prefix waits, so does every shorter one: the longest is found by bisection.
            low, high = length or 1, len(prefixes)
            if low > high or prefixes[low - 1] not in known:
                continue
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if prefixes[middle - 1] in known else (low, middle - 1)
            candidate = next(iter(known[prefixes[low - 1]]))
            if low > length or candidate < nearest:
                length, nearest = low, candidate
        return nearest


def _prefixes(task: Task) -> list[_Prefix]:
    """All prefixes of a task's schedule, the shortest first."""
    return [(task.part, task.schedule[:length]) for length in range(1, len(task.schedule) + 1)]

"""The backlog gives every worker what it has computed most of already, and lets no task wait for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from search.evaluators import Task
from search.evaluators.backlog import Backlog


def task(*levels, part=0):
    return Task(SparsitySchedule.from_grid_indices(levels), part)


def shared(one, other):
    """How many leading sparsities two tasks have in common; none if they are on different parts."""
    if one.part != other.part:
        return 0
    length = 0
    while length < min(len(one.schedule), len(other.schedule)) and one.schedule[length] == other.schedule[length]:
        length += 1
    return length


@dataclass
class SlowBacklog:
    """The rule as it is told, task by task."""

    patience: int
    recent: int
    waiting: list = field(default_factory=list)
    passed_over: list = field(default_factory=list)
    returned: list = field(default_factory=list)
    history: dict = field(default_factory=dict)

    def add(self, task):
        self.waiting.append(task)
        self.passed_over.append(0)

    def give_back(self, tasks):
        self.returned += tasks

    def take(self, worker):
        latest = self.history.setdefault(worker, [])
        if self.returned:
            chosen = self.returned.pop(0)
        elif self.waiting:
            place = 0
            if self.passed_over[0] < self.patience:
                common = [
                    max((shared(one, seen) for seen in latest[-self.recent :]), default=0) for one in self.waiting
                ]
                place = common.index(max(common))
            for older in range(place):
                self.passed_over[older] += 1
            self.passed_over.pop(place)
            chosen = self.waiting.pop(place)
        else:
            return None
        latest.append(chosen)
        return chosen

    def forget(self, worker):
        self.history.pop(worker, None)


tasks = st.builds(
    lambda levels, part: task(*levels, part=part),
    st.lists(st.integers(0, 2), min_size=4, max_size=4),
    st.integers(0, 1),
)
moves = st.one_of(
    st.tuples(st.just("add"), tasks),
    st.tuples(st.just("take"), st.integers(0, 2)),
    st.tuples(st.just("take"), st.integers(0, 2)),
    st.tuples(st.just("give_back"), st.integers(1, 2)),
    st.tuples(st.just("forget"), st.integers(0, 2)),
)


@given(st.lists(tasks, max_size=20), st.lists(moves, max_size=60), st.integers(1, 6), st.integers(1, 4))
def test_the_backlog_gives_the_same_tasks_as_the_slow_rule(first, moves, patience, recent):
    backlog, slow = Backlog(patience, recent), SlowBacklog(patience, recent)
    taken = []
    for move, what in [("add", one) for one in first] + moves:
        if move == "take":
            expected = slow.take(what)
            assert backlog.take(what) == expected
            if expected is not None:
                taken.append(expected)
        elif move == "give_back":
            back, taken = taken[-what:], taken[:-what]
            backlog.give_back(back)
            slow.give_back(back)
        else:
            getattr(backlog, move)(what)
            getattr(slow, move)(what)
        assert len(backlog) == len(slow.waiting) + len(slow.returned)


@given(st.lists(tasks, min_size=1, max_size=19), st.integers(1, 5))
def test_no_task_sees_more_younger_ones_go_first_than_patience_allows(waiting, patience):
    backlog, order = Backlog(patience), []
    numbered = [(task(*one.schedule.grid_indices(), number), number) for number, one in enumerate(waiting)]
    for one, _ in numbered:
        backlog.add(one)
    while (taken := backlog.take("worker")) is not None:
        order.append(taken.schedule.grid_indices()[-1])
    assert sorted(order) == list(range(len(waiting)))
    for place, number in enumerate(order):
        assert sum(other > number for other in order[:place]) <= patience


def test_a_worker_takes_the_schedule_that_starts_like_one_of_its_latest():
    backlog = Backlog(patience=10)
    backlog.add(task(1, 2, 3))
    backlog.add(task(5, 5, 5))
    assert backlog.take("a") == task(1, 2, 3)
    assert backlog.take("b") == task(5, 5, 5)
    for one in (task(5, 5, 1), task(1, 0, 0), task(1, 2, 0)):
        backlog.add(one)
    assert backlog.take("a") == task(1, 2, 0)
    assert backlog.take("b") == task(5, 5, 1)
    assert backlog.take("b") == task(1, 0, 0)


def test_another_part_of_the_search_set_shares_nothing():
    backlog = Backlog(patience=10)
    backlog.add(task(1, 2, 3))
    assert backlog.take("a") == task(1, 2, 3)
    for one in (task(4, 4, 4), task(1, 2, 3, part=1), task(1, 0, 0)):
        backlog.add(one)
    assert backlog.take("a") == task(1, 0, 0)
    assert backlog.take("a") == task(4, 4, 4)


def test_a_worker_that_forgot_takes_the_oldest():
    backlog = Backlog(patience=10)
    backlog.add(task(1, 2, 3))
    backlog.take("a")
    backlog.add(task(4, 4, 4))
    backlog.add(task(1, 2, 0))
    backlog.forget("a")
    assert backlog.take("a") == task(4, 4, 4)


def test_only_a_bounded_number_of_schedules_is_remembered():
    backlog = Backlog(patience=10, recent=2)
    for first in (1, 2, 3):
        backlog.add(task(first, 0, 0))
        backlog.take("a")
    backlog.add(task(1, 1, 1))
    backlog.add(task(2, 1, 1))
    assert backlog.take("a") == task(2, 1, 1)

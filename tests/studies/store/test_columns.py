"""Trials by the column say the same as trials one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from studies import StudyNotFoundError, Trial, TrialState
from studies.records.trial import WorkSpan
from studies.records.trial_columns import STATES, TrialColumns, columns_of
from studies.service.service_store import ServiceStore
from tests.studies.records import running, trial


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServiceStore]:
    with ServiceStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        store.studies.create("s", {}, ("kl", "latency_ms"))
        yield store


def kept(store: ServiceStore, trials: list[Trial]) -> None:
    for one in trials:
        store.trials.begin("s", [running(one.schedule, one.proposer)])
    store.trials.finish("s", trials)


def some() -> list[Trial]:
    return [
        trial(0, (0.5, 10.0), (0.1, 0.9)),
        trial(1, None, (0.2, 0.3)),
        replace(trial(2, (0.1, 20.0), (0.4, 0.5)), proposer="tpe", round=1, metrics={"accuracy": 0.75}),
        replace(trial(3, (0.2, 15.0), fidelity=0.25), state=TrialState.PRUNED, parents=(2,), work=(at("0", 1),)),
        replace(trial(4, (0.3, 12.0)), constraint_violation=0.1, parents=(0, 2), work=(at("10", 2), at("0", 3))),
    ]


def at(worker: str, second: int) -> WorkSpan:
    return WorkSpan(worker, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second), 0.5)


def test_columns_hold_what_records_say(store: ServiceStore) -> None:
    kept(store, some())
    columns = store.columns.of("s")
    assert same(columns, columns_of(store.trials.of("s")[::-1], 2))
    for place, one in enumerate(store.trials.of("s")):
        assert columns.number[place] == one.number
        assert STATES[columns.state[place]] is one.state
        assert columns.schedule[place].tolist() == pytest.approx(one.schedule)
        assert columns.overall_sparsity[place] == pytest.approx(one.overall_sparsity)
        assert columns.proposers[columns.proposer[place]] == one.proposer
        assert columns.parents_of(place) == one.parents
        assert [*columns.workers, None][columns.worker[place]] == one.worker
        assert columns.finished_at[place] == pytest.approx(one.finished_at.timestamp())
        assert (columns.round[place], columns.fidelity[place]) == (one.round, one.fidelity)
        assert (columns.constraint_violation[place], columns.seconds[place]) == (one.constraint_violation, one.seconds)
        assert (
            np.isnan(columns.values[place]).all() if one.values is None else tuple(columns.values[place]) == one.values
        )
    assert columns.work.trial.tolist() == [3, 4, 4] and columns.workers == ("0", "10")
    assert np.diff(columns.work.began_at).tolist() == [1.0, 1.0] and columns.work.seconds.tolist() == [0.5] * 3
    assert columns.metrics["accuracy"][2] == 0.75
    assert np.isnan(columns.metrics["accuracy"][0])
    # Failed, pruned, and breaking a constraint: none of these compares with the others.
    assert columns.comparable.tolist() == [True, False, True, False, False]
    assert columns.place(3) == 3 and columns.place(9) is None


def test_only_what_is_new_is_read_and_what_was_overtaken_is_found(store: ServiceStore) -> None:
    trials = [trial(number, (0.5, 10.0 + number)) for number in range(6)]
    for one in trials:
        store.trials.begin("s", [running(one.schedule, "tpe" if one.number == 5 else "deap")])
    store.trials.finish("s", [trials[0], trials[3]])
    first = store.columns.of("s")
    assert first.number.tolist() == [0, 3]
    late = replace(trials[5], proposer="tpe", metrics={"accuracy": 0.5}, parents=(0, 3), work=(at("4", 7), at("3", 8)))
    store.trials.finish("s", [replace(trials[1], parents=(0,), work=(at("3", 6),)), late])
    second = store.columns.of("s", first)
    assert second.number.tolist() == [0, 1, 3, 5]
    assert same(second, store.columns.of("s"))
    assert store.columns.of("s", second) is second
    store.trials.finish("s", [replace(trials[2], work=(at("4", 9), at("0", 10)))])
    assert same(store.columns.of("s", second), store.columns.of("s"))


def test_a_study_without_trials_has_empty_columns(store: ServiceStore) -> None:
    columns = store.columns.of("s")
    assert len(columns) == 0 and columns.n_blocks == 0
    assert columns.comparable.tolist() == [] and columns.overall_sparsity.tolist() == []
    with pytest.raises(StudyNotFoundError):
        store.columns.of("other")


def test_parameters_that_are_no_schedule_are_left_out(store: ServiceStore) -> None:
    import optuna

    kept(store, [trial(0, (0.5, 10.0))])
    study = optuna.load_study(study_name="s", storage=store.storage)
    study.add_trial(
        optuna.trial.create_trial(
            params={"x": 1.0}, distributions={"x": optuna.distributions.FloatDistribution(0, 2)}, values=[1.0, 2.0]
        )
    )
    assert store.columns.of("s").number.tolist() == [0]


def test_the_last_events_come_oldest_first(store: ServiceStore) -> None:
    store.queue.submit("s")
    store.events.add(
        "s", [("log", {"text": "a"}), ("figures", {"step": 1}), ("log", {"text": "b"}), ("log", {"text": "c"})]
    )
    assert [one.content["text"] for one in store.events.latest("s", ("log",), 2)] == ["b", "c"]
    assert [one.content for one in store.events.latest("s", ("figures",))] == [{"step": 1}]
    assert store.events.latest("s", ("ended",)) == []


def same(a: TrialColumns, b: TrialColumns) -> bool:
    named = [
        (
            [columns.proposers[number] for number in columns.proposer],
            [columns.parents_of(place) for place in range(len(columns))],
            sorted(
                zip(
                    columns.work.trial.tolist(),
                    columns.work.began_at.tolist(),
                    columns.work.seconds.tolist(),
                    [columns.workers[number] for number in columns.work.worker],
                    strict=True,
                )
            ),
            [[*columns.workers, None][number] for number in columns.worker],
        )
        for columns in (a, b)
    ]
    plain = all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
        for name in (
            "number",
            "state",
            "values",
            "schedule",
            "fidelity",
            "constraint_violation",
            "seconds",
            "finished_at",
            "round",
        )
    )
    metrics = all(np.array_equal(a.metrics[name], b.metrics[name], equal_nan=True) for name in {*a.metrics, *b.metrics})
    return plain and metrics and named[0] == named[1]

"""Which trials keep constraints: every reader says what Optuna says of the same trials in its own storage."""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.samplers.nsgaii._constraints_evaluation import _evaluate_penalty
from optuna.study._constrained_optimization import _get_feasible_trials
from optuna.trial import FrozenTrial, create_trial

from dashboards.analysis.trials import Found
from studies import LoadedStudy, TrialState, front
from studies.service.service_store import ServiceStore
from tests.studies.records import SAID, said, trial

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = {f"block_{index}": FloatDistribution(0, 1) for index in range(2)}
DIRECTIONS = ["minimize", "minimize"]


@pytest.fixture
def store(database_url: str) -> Iterator[ServiceStore]:
    with ServiceStore(database_url) as store:
        yield store


@dataclass(frozen=True)
class Told:
    """A trial as somebody tells it: its values, and its constraints by name, or in a list as before Optuna 5."""

    values: tuple[float, float]
    named: dict[str, float] = field(default_factory=dict)
    listed: list[float] | None = None

    def frozen(self) -> FrozenTrial:
        return create_trial(
            params=dict.fromkeys(SPACE, 0.5),
            distributions=SPACE,
            values=self.values,
            constraints=self.named,
            user_attrs=SAID,
            system_attrs={} if self.listed is None else {"constraints": self.listed},
        )


bounds = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1e-300, 0.25, 1.0, math.inf])
tellings = st.lists(
    st.builds(
        Told,
        values=st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([1.0, 2.0, 3.0])),
        # "0" is what the first of a list is called.
        named=st.dictionaries(st.sampled_from(["0", "accuracy", "a:b"]), bounds, max_size=3),
        listed=st.none() | st.lists(bounds | st.just(math.nan), max_size=2),
    ),
    min_size=1,
    max_size=8,
)


def both(store: ServiceStore) -> tuple[str, optuna.Study, optuna.Study]:
    """A new study here, and one in Optuna's memory."""
    name = uuid.uuid4().hex
    store.studies.create(name, {}, ("kl", "latency_ms"))
    return name, optuna.load_study(study_name=name, storage=store.storage), optuna.create_study(directions=DIRECTIONS)


def asked(study: optuna.Study) -> optuna.Trial:
    return said(study.ask(SPACE))


def check(store: ServiceStore, name: str, ours: optuna.Study, theirs: optuna.Study) -> None:
    """Each way to read the study here agrees with Optuna on what is in its own storage."""
    feasible = [trial.number for trial in _get_feasible_trials(theirs.trials)]
    best = [trial.values for trial in theirs.best_trials]
    assert [trial.number for trial in _get_feasible_trials(ours.trials)] == feasible
    assert [trial.values for trial in ours.best_trials] == best
    records, columns, table = store.trials.of(name), store.columns.of(name), LoadedStudy(store, name).trials()
    assert [record.number for record in records if record.constraint_violation == 0] == feasible
    assert columns.number[columns.comparable].tolist() == feasible
    assert table.index[table.constraint_violation == 0].tolist() == feasible
    assert (
        columns.constraint_violation.tolist()
        == [record.constraint_violation for record in records]
        == table.constraint_violation.tolist()
    )
    # Of equal trials we show one, Optuna all.
    unique = sorted({tuple(values) for values in best})
    found = Found(columns, ("kl", "latency_ms"))
    assert [list(record.values or ()) for record in front(records)] == [list(values) for values in unique]
    assert {record.values for record in found.records(found.front())} == set(unique)
    # What samplers go by; a constraint that is no number has no weight there.
    for record, penalty in zip(records, _evaluate_penalty(theirs.trials), strict=True):
        assert record.constraint_violation == (penalty if record.constraint_violation < math.inf else math.inf)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tellings=tellings)
def test_feasible_is_what_optuna_finds_feasible(store: ServiceStore, tellings: list[Told]) -> None:
    name, ours, theirs = both(store)
    with warnings.catch_warnings():
        # Optuna says where a named constraint overrides one of a list.
        warnings.simplefilter("ignore")
        for telling in tellings:
            for study in (ours, theirs):
                study.add_trial(telling.frozen())
        check(store, name, ours, theirs)


def test_constraints_that_are_set_while_a_trial_runs_count(store: ServiceStore) -> None:
    name, ours, theirs = both(store)
    for study in (ours, theirs):
        for kl, constraints in ((0.1, {"accuracy": 0.2, "memory": -1.0}), (0.2, {"accuracy": 0.0}), (0.3, {})):
            running = asked(study)
            for key, value in constraints.items():
                running.set_constraint(key, value)
            study.tell(running, [kl, 1.0])
    check(store, name, ours, theirs)
    assert [record.number for record in front(store.trials.of(name))] == [1]
    # What others set is heeded where only the news is read, too.
    before = store.columns.of(name)
    running = asked(ours)
    running.set_constraint("accuracy", 0.5)
    ours.tell(running, [0.05, 1.0])
    assert store.columns.of(name, before).comparable.tolist() == [False, True, True, False]


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
def test_constraints_of_a_sampler_count(store: ServiceStore, sampler: Any) -> None:
    name, ours, theirs = both(store)
    for study in (ours, theirs):

        def constraints(trial: FrozenTrial) -> tuple[float, ...]:
            return (trial.params["block_0"] - 0.5, 0.25 - trial.params["block_1"])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.sampler = sampler(seed=0, constraints_func=constraints)
        study.optimize(
            lambda trial: (said(trial).suggest_float("block_0", 0, 1), trial.suggest_float("block_1", 0, 1)), 20
        )
    assert 0 < len(_get_feasible_trials(theirs.trials)) < 20
    check(store, name, ours, theirs)


def test_optuna_reads_what_the_search_keeps(store: ServiceStore) -> None:
    name, ours, _ = both(store)
    kept = [trial(0, (0.1, 1.0)), trial(1, (0.2, 1.0)), trial(2, None)]
    kept[0] = replace(kept[0], constraint_violation=0.05)
    store.trials.begin(name, kept)
    store.trials.finish(name, kept)
    assert [one.number for one in ours.best_trials] == [1]
    assert [sum(one.constraints.values()) for one in ours.trials] == [0.05, 0, 0]
    assert [(one.constraint_violation, one.state) for one in store.trials.of(name)] == [
        (0.05, TrialState.FINISHED),
        (0.0, TrialState.FINISHED),
        (0.0, TrialState.FAILED),
    ]

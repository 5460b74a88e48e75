"""What other programs put into a study of schedules through Optuna is left aside, and left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

import studies
from studies import StudyStore, Trial, front, hypervolume
from studies.pareto import reference_point, study_volume
from studies.records.records import LeftAside
from studies.service.service_store import ServiceStore
from tests.studies.other_programs import interfere, space_of
from tests.studies.records import running, trial

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def store(database_url: str) -> Iterator[ServiceStore]:
    with ServiceStore(database_url) as store:
        store.studies.create("one", {}, ("kl", "latency_ms"))
        yield store


def _optuna(store: StudyStore) -> optuna.Study:
    return optuna.load_study(study_name="one", storage=store.storage)


def _search(store: StudyStore, values: tuple[float, float] | None, schedule: tuple[float, ...] = (0.0, 0.5)) -> int:
    """A trial as a search begins and ends it."""
    number = store.trials.begin("one", [running(schedule, "deap")])[0].number
    assert store.trials.finish("one", [trial(number, values, schedule)])
    return number


def _others(store: StudyStore, own: list[int]) -> list[FrozenTrial]:
    return [one for one in _optuna(store).get_trials() if one.number not in own]


def test_trials_of_other_programs_are_none_of_a_searchs(store: ServiceStore) -> None:
    own = [_search(store, (0.5, 3.0)), _search(store, (0.2, 4.0)), _search(store, None)]
    added = interfere(store.storage, "one")
    own.append(_search(store, (0.1, 5.0)))
    found = store.trials.of("one")
    assert [one.number for one in found] == [one.number for one in store.trials.each("one")] == own
    assert [one.values for one in found] == [(0.5, 3.0), (0.2, 4.0), None, (0.1, 5.0)]
    columns = store.columns.of("one")
    assert columns.number.tolist() == own and columns.proposers == ("deap",) and list(columns.metrics) == ["perplexity"]
    assert store.trials.left_aside("one") == added and len(columns.left_aside) == added.ended
    assert str(added) == (
        "Left aside: 19 trials that other programs put into the study through Optuna (14 ended, 2 running, 3 waiting)."
    )
    # Nothing but Optuna's own view knows them.
    assert (
        store.trials.n_ended("one") == len(own) + added.ended and store.trials.n_begun("one") == len(own) + added.total
    )
    for other in _others(store, own):
        assert store.trials.find("one", other.number) is None and columns.place(other.number) is None
    loaded = studies.load("one", store)
    assert list(loaded.trials().index) == own and loaded.best().values == (0.2, 4.0)
    assert list(loaded.front()["kl"]) == [0.1, 0.2, 0.5]
    corner = reference_point([one.values for one in front(found)])
    assert loaded.hypervolume(corner) == hypervolume(found, corner) == hypervolume(front(found), (0.54, 5.2))
    measured = study_volume(store.studies.get("one"), found)
    assert measured is not None and loaded.hypervolume() == measured.of(front(found)) > 0


def test_columns_that_are_read_piece_by_piece_have_what_ended_late(store: ServiceStore) -> None:
    late, known = store.trials.begin("one", [running((0.0, 0.25), "tpe")])[0].number, None
    _search(store, (0.5, 3.0))
    for _ in range(2):
        known = store.columns.of("one", known)
    assert known is not None
    study = _optuna(store)
    # More than are asked for again one by one.
    ended = create_trial(params={"x": 1}, distributions={"x": IntDistribution(0, 3)}, values=(0.0, 0.0))
    study.add_trials([ended] * 600)
    known = store.columns.of("one", known)
    assert store.columns.of("one", known) is known
    store.trials.finish("one", [trial(late, (0.1, 9.0), (0.0, 0.25))])
    for columns in (store.columns.of("one", known), store.columns.of("one")):
        assert columns.number.tolist() == [late, 1] and len(columns.left_aside) == 600
        assert columns.schedule.tolist() == [[0.0, 0.25], [0.0, 0.5]]
        assert len(columns.ended) == store.trials.n_ended("one")


def test_a_study_that_others_began_gets_columns_as_a_search_ends_trials(store: ServiceStore) -> None:
    added = interfere(store.storage, "one")
    known = store.columns.of("one")
    assert len(known) == 0 and len(known.left_aside) == added.ended
    number = _search(store, (0.5, 3.0))
    for columns in (store.columns.of("one", known), store.columns.of("one")):
        assert columns.number.tolist() == [number] and np.array_equal(columns.left_aside, known.left_aside)


def test_a_lease_takes_no_trial_away_from_another_program(store: ServiceStore) -> None:
    own = store.trials.begin("one", [running((0.1, 0.5), "tpe")])[0].number
    added, before = interfere(store.storage, "one"), _others(store, [own])
    for _ in range(2):
        with store.runs.lease("one"):
            assert [queued.number for queued in store.trials.claim_waiting("one")] == [own]
            assert store.trials.claim_waiting("one") == []
    assert _others(store, [own]) == before and store.trials.left_aside("one") == added


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_a_searchs_trial_that_another_program_ends_is_left_aside(store: ServiceStore, state: TrialState) -> None:
    number = store.trials.begin("one", [running((0.1, 0.5), "tpe")])[0].number
    _optuna(store).tell(number, (0.0, 0.0) if state is TrialState.COMPLETE else None, state=state)
    assert not store.trials.finish("one", [trial(number, (0.5, 3.0), (0.1, 0.5))])
    assert store.trials.of("one") == [] and store.trials.left_aside("one") == LeftAside(ended=1)
    assert store.columns.of("one").left_aside.tolist() == [number]


def test_a_searchs_trial_that_another_program_adds_a_parameter_to_waits_for_nobody(store: ServiceStore) -> None:
    number = store.trials.begin("one", [running((0.1, 0.5), "tpe")])[0].number
    with store.runs.lease("one"):
        # Whoever dies before it claims its queue leaves it to Optuna's workers.
        asked = _optuna(store).ask()
        assert asked.number == number and asked.params == {"block_0": 0.1, "block_1": 0.5}
        asked.suggest_int("other", 0, 3)
    with store.runs.lease("one"):
        assert store.trials.claim_waiting("one") == []
    assert store.trials.left_aside("one") == LeftAside(waiting=1)


def test_a_search_begins_whatever_others_call_a_block(store: ServiceStore) -> None:
    choices = CategoricalDistribution(["a", "b"])
    study = _optuna(store)
    study.add_trial(create_trial(params={"block_0": "a"}, distributions={"block_0": choices}, values=(0.0, 0.0)))
    number = _search(store, (0.5, 3.0))
    assert [one.number for one in store.trials.of("one")] == store.columns.of("one").number.tolist() == [number]
    # Optuna's own programs are still held to what they began with.
    with pytest.raises(ValueError, match="different distribution kind"):
        study.ask(space_of(2))


def test_a_copy_of_a_searchs_trial_is_a_searchs(store: ServiceStore) -> None:
    _search(store, (0.5, 3.0))
    study = _optuna(store)
    study.add_trials(study.get_trials())
    found = store.trials.of("one")
    assert found == [trial(0, (0.5, 3.0)), replace(trial(0, (0.5, 3.0)), number=1)]
    assert isinstance(found[1], Trial) and store.trials.left_aside("one") == LeftAside()

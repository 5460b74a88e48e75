"""Schedules with halves are kept as such, beside those of whole blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.schedule import SparsitySchedule
from studies import StudyStore, Trial, load
from studies.records.halves import Halves, halves, joined, n_blocks, named, overall, per_block, read, stored, to_json
from studies.records.trial_columns import columns_of
from tests.studies.records import trial

SPLIT = SparsitySchedule.of_halves([0.5, 0.0], [0.25, 0.75], [True, False])
WHOLE = SparsitySchedule([0.25, 0.5])


@st.composite
def schedules(draw: st.DrawFn) -> SparsitySchedule:
    share = st.integers(0, 19).map(lambda index: index / 20)
    rows = draw(st.lists(st.tuples(share, share, st.booleans()), min_size=1, max_size=9))
    attention, mlp, keeps = zip(*rows, strict=True)
    return draw(st.sampled_from([SparsitySchedule.of_halves(attention, mlp, keeps), SparsitySchedule(attention)]))


@given(schedule=schedules())
def test_what_is_stored_says_what_the_schedule_says(schedule: SparsitySchedule) -> None:
    kept = stored(schedule)
    assert isinstance(kept, Halves) is not schedule.is_plain
    assert to_json(kept) == schedule.to_json()
    assert (n_blocks(kept), halves(kept)[:2]) == (schedule.n_blocks, (schedule.attention, schedule.mlp))
    assert overall(kept) == pytest.approx(schedule.overall)
    assert per_block(kept) == pytest.approx([block.overall for block in schedule.blocks])
    assert joined(schedule.numbers) == kept == schedule and type(joined(schedule.numbers)) is type(kept)
    assert SparsitySchedule.of(kept) == schedule
    for has_halves in {True, not schedule.is_plain}:
        assert read(named(kept, has_halves)) == schedule


@pytest.mark.parametrize("parameters", [{}, {"attention_0": 0.1}, {"attention_0": 0.1, "mlp_0": 0.1, "kv_1": 0.0}])
def test_other_parameters_are_no_schedule(parameters: dict[str, float]) -> None:
    assert read(parameters) is None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        store.studies.create("s", {"granularity": "half", "kv": "drop"}, ("kl", "latency_ms"))
        yield store


def keep(store: StudyStore, found: Sequence[SparsitySchedule], context: str | None = None) -> None:
    store.trials.begin("s", [Trial(0, schedule, "tpe") for schedule in found])
    ended = [replace(trial(n, (0.5, 10.0), schedule), metrics={"kl": 0.5}) for n, schedule in enumerate(found)]
    store.trials.finish("s", ended, context)


def test_trials_come_back_as_they_were_and_are_parameters_of_one_space_for_optuna(store: StudyStore) -> None:
    keep(store, [SPLIT, WHOLE])
    assert [one.schedule for one in store.trials.of("s")] == [SPLIT, WHOLE]
    assert [SparsitySchedule.of(one.schedule) for one in store.trials.each("s")] == [SPLIT, WHOLE]
    assert store.trials.get("s", 0).overall_sparsity == SPLIT.overall
    seen = optuna.load_study(study_name="s", storage=store.storage).trials
    assert seen[0].params == {
        **{"attention_0": 0.5, "attention_1": 0.0, "mlp_0": 0.25, "mlp_1": 0.75, "kv_0": 1.0, "kv_1": 0.0}
    }
    assert seen[1].params.keys() == seen[0].params.keys()
    frame = load("s", store).trials()
    assert frame.loc[0, "mlp_1"] == 0.75 and frame.loc[1, "attention_1"] == 0.5 and "block_0" not in frame


def test_columns_have_the_halves_and_their_means(store: StudyStore) -> None:
    keep(store, [SPLIT, WHOLE])
    for columns in (store.columns.of("s"), columns_of(store.trials.of("s"), 2)):
        assert columns.has_halves and columns.n_blocks == 2
        assert columns.schedule.tolist() == [[0.375, 0.375], [0.25, 0.5]]
        assert columns.halves.tolist() == [list(SPLIT.numbers), list(WHOLE.numbers)]
        assert [columns.schedule_at(place) for place in range(2)] == [SPLIT, WHOLE]
        assert columns.overall_sparsity.tolist() == [0.375, 0.375]


def test_evaluations_of_halves_are_none_of_three_times_as_many_blocks(store: StudyStore) -> None:
    keep(store, [SPLIT, WHOLE], "context")
    more_blocks = SparsitySchedule([*SPLIT.attention, *SPLIT.mlp, 0.0, 0.0])
    store.evaluations.keep("context", more_blocks, {"kl": 0.1})
    same_numbers = SparsitySchedule.of_halves([0.5, 0.0], [0.25, 0.75])
    known = store.evaluations.find("context", [SPLIT, WHOLE])
    assert {SparsitySchedule.of(one) for one in known} == {SPLIT, WHOLE}
    assert store.evaluations.find("context", [more_blocks]) == {tuple(more_blocks): {"kl": 0.1}}
    assert store.evaluations.find("context", [same_numbers]) == {}

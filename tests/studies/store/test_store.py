"""What a store is given it gives back, and it says clearly what it cannot do."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies import (
    Measurement,
    RouterRun,
    StorageError,
    StudyExistsError,
    StudyNotFoundError,
    StudyState,
    StudyStore,
    Trial,
    TrialState,
    front,
    load,
)
from studies.records.compared import Compared
from studies.records.labels import Labels
from studies.records.records import Disagreement, GroupAccuracy, ReportExamples, RoutedPrompt
from studies.records.study_facts import ProfileRecord, StudyFacts
from studies.records.trial import WorkSpan
from studies.sql.location import database_file
from tests.studies.records import running, trial

MEASUREMENT = Measurement(
    variant="static",
    trial=3,
    schedule=(0.1, 0.2),
    kl=0.5,
    perplexity=2.0,
    accuracy=0.9,
    accuracy_low=0.8,
    accuracy_high=0.95,
    n_items=100,
    latency_ms=5.0,
    latency_low_ms=4.5,
    latency_high_ms=6.0,
    repeats=9,
    batch=8,
    length=256,
    flops=1e9,
)
ROUTER = RouterRun(
    trial=3,
    schedule=(0.1, 0.2),
    config={"lr": 0.01},
    curves={"step": [0, 1], "loss": [1.0, 0.5]},
    sha256=hashlib.sha256(b"weights").hexdigest(),
    seconds=1.5,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def store(url: str) -> Iterator[StudyStore]:
    with StudyStore(url) as store:
        store.studies.create("one", {"model": "demo", "data": "demo", "trials": 3}, ("kl", "latency_ms"))
        yield store


def test_a_new_study_has_nothing_but_its_configuration(store: StudyStore) -> None:
    study = store.studies.get("one")
    assert study.config == {"model": "demo", "data": "demo", "trials": 3}
    assert (study.state, study.objectives, study.facts, study.chosen_trial) == (
        "created",
        ("kl", "latency_ms"),
        StudyFacts(),
        None,
    )
    assert study.created_at.tzinfo is not None
    assert store.trials.of("one") == []
    assert store.routers.of("one") == []


@given(
    schedule=st.lists(st.floats(0, 0.95), min_size=1, max_size=40).map(tuple),
    values=st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6)),
    error=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
)
def test_trials_come_back_bit_for_bit(schedule: tuple[float, ...], values: tuple[float, float], error: str) -> None:
    with StudyStore("sqlite://") as store:
        store.studies.create("s", {}, ("a", "b"))
        kept = [
            trial(0, values, schedule),
            replace(trial(1, None, schedule), error=error),
            replace(trial(2, values, schedule), round=2, router=0),
        ]
        for record in kept:
            store.trials.append("s", record)
        assert store.trials.of("s") == kept
        assert store.trials.n_ended("s") == store.trials.n_begun("s") == 3


def test_everything_else_comes_back_as_it_was_given(store: StudyStore) -> None:
    store.results.replace_measurements("one", [replace(MEASUREMENT, variant="dense")])
    store.results.replace_measurements("one", [MEASUREMENT, replace(MEASUREMENT, trial=None, accuracy=None)])
    assert store.results.measurements("one") == [MEASUREMENT, replace(MEASUREMENT, trial=None, accuracy=None)]
    later = replace(ROUTER, trial=4, number=1)
    store.routers.add("one", ROUTER, b"weights")
    store.routers.add("one", later, b"weights")
    assert store.routers.of("one") == [ROUTER, later]
    store.studies.update_facts("one", StudyFacts(n_blocks=2))
    profile = ProfileRecord.model_validate({"batch": 1, "length": 2, "block_ms": [1.5]})
    store.studies.update_facts("one", StudyFacts(latency_profile=profile))
    store.studies.choose_trial("one", 3)
    store.runs.set_state("one", StudyState.STOPPED)
    store.studies.set_config("one", {"model": "x", "data": "y"})
    study = store.studies.get("one")
    assert study.facts == StudyFacts(n_blocks=2, latency_profile=profile)
    assert (study.chosen_trial, study.state) == (3, StudyState.STOPPED)
    summary = store.studies.summaries()[0]
    assert (summary.name, summary.n_trials, summary.model, summary.data) == ("one", 0, "x", "y")


def test_examples_come_back_as_they_were_given_and_replace_those_before(store: StudyStore) -> None:
    assert store.results.examples("one") is None
    examples = ReportExamples(
        prompts=(RoutedPrompt((" a", "b"), (2, 0), 2, " yes", " yes", " no"),),
        groups=(GroupAccuracy("near", 3, {"dense": 1.0}, {"dense": (0.4, 1.0)}),),
        disagreements=(Disagreement("<b>", " yes", " yes", " no", 1.5, "near"), Disagreement("", "", "", "", 0.0)),
        n_disagreements=1,
        n_lost=1,
        n_items=3,
        kl_ratios={"uniform": (0.5, 0.75)},
    )
    store.results.keep_examples("one", ReportExamples())
    store.results.keep_examples("one", examples)
    assert store.results.examples("one") == examples


def test_an_evaluation_is_known_to_whoever_asks_for_the_same(store: StudyStore) -> None:
    kept = {"kl": 0.1, "interval": [0.0, 0.2]}
    store.evaluations.keep("c" * 64, (0.5, 0.0), kept)
    store.evaluations.keep("c" * 64, (0.5, 0.0), {"kl": 0.2})
    assert store.evaluations.find("c" * 64, [(0.5, 0.0), (0.5, 0.5)]) == {(0.5, 0.0): kept}
    assert store.evaluations.find("d" * 64, [(0.5, 0.0)]) == {}


def test_unfinished_work_of_each_study_and_stage_has_a_place_of_its_own(tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'a.db'}") as store:
        places = set()
        for name in ("one", "two"):
            store.studies.create(name, {}, ("kl",))
            places |= {store.runs.unfinished_work(name, stage) for stage in ("distill-1", "tune")}
    assert len(places) == 4 and {place.parent for place in places if place} == {tmp_path / "a.db-artifacts/unfinished"}


def test_a_stage_that_is_forgotten_has_not_begun(store: StudyStore) -> None:
    for stage in ("search", "measure"):
        store.runs.begin_stage("one", stage)
    store.runs.forget_stages("one", ["measure", "select"])
    assert [stage.name for stage in store.runs.stages("one")] == ["search"]


def test_the_last_run_of_each_stage_is_remembered(store: StudyStore) -> None:
    for ended in (StudyState.FAILED, StudyState.FINISHED):
        store.runs.begin_stage("one", "search")
        store.runs.end_stage("one", "search", ended)
    with store.runs.lease("one"):
        store.runs.begin_stage("one", "distill")
        assert [stage.state for stage in store.runs.stages("one")] == [StudyState.FINISHED, StudyState.RUNNING]
    # Nobody works on the study any more: the stage was cut off.
    search, distill = store.runs.stages("one")
    assert (search.name, distill.name, distill.state) == ("search", "distill", StudyState.STOPPED)
    assert search.seconds is not None and search.seconds >= 0 and distill.seconds is None


def test_what_proposers_keep_is_replaced_one_by_one(store: StudyStore) -> None:
    assert store.runs.proposer_states("one") == []
    store.runs.keep_proposer_states("one", {"tpe": {"asked": 1}, "deap": {"asked": 2}})
    store.runs.keep_proposer_states("one", {"tpe": {"asked": 3, "seconds": 0.5}})
    deap, tpe = store.runs.proposer_states("one")
    assert (deap.proposer, deap.state) == ("deap", {"asked": 2})
    assert (tpe.proposer, tpe.state) == ("tpe", {"asked": 3, "seconds": 0.5})
    assert deap.updated_at < tpe.updated_at


def test_what_was_stored_is_there_for_the_next_process(store: StudyStore, url: str) -> None:
    store.trials.append("one", trial(0, (1.0, 2.0)))
    with StudyStore(url, create=False) as other:
        assert other.trials.of("one") == store.trials.of("one")


def test_trial_numbers_have_no_gaps_and_are_given_once(store: StudyStore) -> None:
    with pytest.raises(StorageError, match="the next one is 0"):
        store.trials.append("one", trial(1, (1.0, 2.0)))
    store.trials.append("one", trial(0, (1.0, 2.0)))
    with pytest.raises(StorageError, match="trial 0 already"):
        store.trials.append("one", trial(0, (3.0, 4.0)))
    assert store.trials.of("one")[0].values == (1.0, 2.0)


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (float("inf"), 1.0)])
def test_a_finished_trial_needs_finite_values(store: StudyStore, values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="record it as failed"):
        store.trials.append("one", trial(0, values))
    with pytest.raises(ValueError, match="record it as failed"):
        store.trials.append("one", replace(trial(0, None), state=TrialState.FINISHED))
    assert store.trials.n_ended("one") == 0


def test_labels_are_changed_one_by_one_and_the_sweep_stays(store: StudyStore) -> None:
    config = store.studies.get("one").config
    assert store.studies.get("one").labels == store.studies.summaries()[0].labels == Labels()
    assert store.studies.label("one", tags=["a"]) == Labels(("a",))
    assert store.studies.label("one", note="n") == store.studies.get("one").labels == Labels(("a",), "n")
    store.studies.create("of a sweep", {}, ("kl",), labels=Labels(("a", "b"), "n", "grid"))
    assert store.studies.label("of a sweep", [], "") == Labels(sweep="grid")
    assert [one.labels for one in store.studies.summaries()] == [Labels(("a",), "n"), Labels(sweep="grid")]
    # They are no settings.
    assert store.studies.get("one").config == config
    with pytest.raises(StudyNotFoundError):
        store.studies.label("two", ["a"])


def test_deleting_a_study_deletes_all_it_remembers(store: StudyStore, tmp_path: Path) -> None:
    store.trials.append("one", trial(0, (1.0, 2.0)))
    store.results.replace_measurements("one", [MEASUREMENT])
    store.routers.add("one", ROUTER, b"weights")
    store.substitutes.keep("one", [b"maps"])
    store.fitted_prompts.keep("one", [[1, 2]])
    store.runs.keep_proposer_states("one", {"tpe": {"asked": 1}})
    store.studies.label("one", ["a"], "b")
    store.comparisons.keep("one", Compared("a", "", "latency", 0.25, 1, "c", None, "why"))
    store.delete_study("one")
    assert store.studies.summaries() == []
    with sqlite3.connect(tmp_path / "studies.db") as raw:
        tables = ("trial", "measurement", "router_run", "substitute", "fitted_prompts", "proposer_state", "label")
        for table in (*tables, "comparison"):
            assert raw.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_names_are_unique_and_unknown_ones_are_answered_with_those_there_are(store: StudyStore) -> None:
    with pytest.raises(StudyExistsError, match="ftp-search resume one"):
        store.studies.create("one", {}, ("kl",))
    for call in (store.studies.get, store.trials.of, store.delete_study, store.routers.of):
        with pytest.raises(StudyNotFoundError, match=r"no study 'onee'.*there are 'one'"):
            call("onee")


def test_an_altered_router_is_found_out(store: StudyStore, tmp_path: Path) -> None:
    store.routers.add("one", ROUTER, b"weights")
    with sqlite3.connect(tmp_path / "studies.db") as raw:
        raw.execute("UPDATE router_run SET weights = ?", (b"weight5",))
    with pytest.raises(StorageError, match="A router of study 'one' was altered in .* distil the router again"):
        store.routers.weights("one", 0)
    # Nothing else needs the weights.
    assert store.routers.of("one") == [ROUTER]


def test_substitutes_are_kept_block_by_block_and_replaced_together(store: StudyStore) -> None:
    assert store.substitutes.of("one") == []
    store.substitutes.keep("one", [bytes([block]) * 3 for block in range(12)])
    store.substitutes.keep("one", blocks := [b"first", b"second", b"third"])
    assert store.substitutes.of("one") == blocks
    store.studies.create("two", {}, ("kl",))
    assert store.substitutes.of("two") == []


def test_fitted_prompts_are_kept_as_they_are_and_replaced_together(store: StudyStore) -> None:
    assert store.fitted_prompts.of("one") == []
    store.fitted_prompts.keep("one", [[1]])
    store.fitted_prompts.keep("one", prompts := [(1, 2, 3), (), (70_000, 1)])
    assert store.fitted_prompts.of("one") == prompts
    store.studies.create("two", {}, ("kl",))
    assert store.fitted_prompts.of("two") == []


def test_altered_substitutes_are_found_out(store: StudyStore, tmp_path: Path) -> None:
    store.substitutes.keep("one", [b"first", b"second"])
    with sqlite3.connect(tmp_path / "studies.db") as raw:
        raw.execute("UPDATE substitute SET weights = ? WHERE block = 1", (b"another",))
    with pytest.raises(StorageError, match="substitutes of study 'one' were altered in .* those of block 1"):
        store.substitutes.of("one")


def test_routers_are_found_from_everywhere(store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.routers.add("one", ROUTER, b"weights")
    monkeypatch.setenv("FTP_SEARCH_ARTIFACTS", str(tmp_path / "elsewhere"))
    with StudyStore(f"sqlite:///{tmp_path / 'studies.db'}") as other:
        assert other.routers.of("one") == [ROUTER] and other.routers.weights("one", 0) == b"weights"
        with pytest.raises(StorageError, match="has no router 1"):
            other.routers.weights("one", 1)
    with pytest.raises(StorageError, match="hand over both of one router"):
        store.routers.add("one", replace(ROUTER, sha256="0" * 64), b"weights")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("studies.db", "write sqlite:///PATH"),
        ("mysql://root:secret@localhost/x", "'mysql' are not supported"),
        ("sqlite:////no/such/folder/studies.db", "does not exist"),
        ("postgresql+psycopg://user:secret@127.0.0.1:1/x", "refused"),
        ("postgresql+psycopg://user:secret@127.0.0.1:port/x", "not the URL of a database"),
        ("postgresql+asyncpg://user:secret@127.0.0.1:1/x", "driver of 'postgresql.asyncpg' is not supported"),
        ("sqlite:///studies.db?mode=ro", "named by its path alone"),
        ("sqlite:///file:studies.db", "named by its path alone"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_clear_line(url: str, words: str) -> None:
    with pytest.raises(StorageError, match=words) as error:
        StudyStore(url)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_reading_does_not_make_a_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="run a study first"):
        StudyStore(f"sqlite:///{tmp_path / 'none.db'}", create=False)
    assert list(tmp_path.iterdir()) == []


def _foreign(file: Path) -> None:
    with sqlite3.connect(file) as raw:
        raw.execute("CREATE TABLE recipes (name TEXT)")
    raw.close()


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: file.write_text("Dear database, " * 100), "is not a database"),
        (_foreign, "belongs to another program"),
        (lambda file: file.mkdir(), "Cannot read the database"),
    ],
)
def test_what_is_not_ours_is_refused_and_kept(
    tmp_path: Path, make: Callable[[Path], object], words: str, create: bool
) -> None:
    file = tmp_path / "letter.txt"
    make(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(StorageError, match=words) as error:
        StudyStore(f"sqlite:///{file}", create=create)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [file]
    assert before is None or file.read_bytes() == before


def test_an_empty_file_becomes_a_database_only_if_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "studies.db"
    file.touch()
    with pytest.raises(StorageError, match="run a study first"):
        StudyStore(f"sqlite:///{file}", create=False)
    assert file.stat().st_size == 0 and list(tmp_path.iterdir()) == [file]
    with StudyStore(f"sqlite:///{file}") as store:
        assert store.studies.summaries() == []


def test_a_database_is_known_as_ours_while_another_process_has_it_open(store: StudyStore, url: str) -> None:
    with StudyStore(url, create=False) as other:
        assert [summary.name for summary in other.studies.summaries()] == ["one"]


def test_values_that_are_not_json_are_refused_in_one_line(store: StudyStore) -> None:
    with pytest.raises(StorageError, match="cannot be stored"):
        store.studies.update_facts("one", StudyFacts(dense_costs={"flops": float("nan")}))
    assert store.studies.get("one").facts == StudyFacts()


def test_a_measurement_from_before_choices_were_counted_still_loads(store: StudyStore, tmp_path: Path) -> None:
    store.results.replace_measurements("one", [replace(MEASUREMENT, n_choice_items=7)])
    assert store.results.measurements("one")[0].n_choice_items == 7
    with sqlite3.connect(tmp_path / "studies.db") as raw:
        raw.execute("UPDATE measurement SET figures = json_remove(figures, '$.n_choice_items')")
    assert store.results.measurements("one") == [MEASUREMENT]


def test_the_file_of_a_database_is_that_of_sqlite_alone(tmp_path: Path) -> None:
    assert database_file(f"sqlite:///{tmp_path / 'a b.db'}") == tmp_path / "a b.db"
    assert database_file("sqlite://") is None
    assert database_file("postgresql://user:secret@host/x") is None


def test_studies_can_be_kept_in_memory() -> None:
    with StudyStore("sqlite://") as store:
        store.studies.create("one", {}, ("kl",))
        assert store.trials.n_ended("one") == 0


def _open(url: str) -> None:
    StudyStore(url).close()


def test_processes_that_begin_at_once_make_one_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    context = multiprocessing.get_context("spawn")
    openers = [context.Process(target=_open, args=(url,)) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0] * 4


def test_threads_that_begin_at_once_make_one_database(tmp_path: Path) -> None:
    # Opened at the same moment, about one in two hundred used to find the file locked: many, for a test that can fail.
    for attempt in range(30):
        url, together = f"sqlite:///{tmp_path / f'{attempt}.db'}", threading.Barrier(8)

        def open_at_once(url: str = url, together: threading.Barrier = together) -> None:
            together.wait()
            StudyStore(url).close()

        with ThreadPoolExecutor(8) as pool:
            for opened in [pool.submit(open_at_once) for _ in range(8)]:
                opened.result()


def _append(url: str, name: str) -> None:
    with StudyStore(url) as store:
        for number in range(50):
            store.trials.append(name, trial(number, (1.0, 2.0)))


def test_two_processes_write_to_one_file(store: StudyStore, url: str) -> None:
    store.studies.create("two", {}, ("kl", "latency_ms"))
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append, args=(url, name)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [store.trials.n_ended(name) for name in ("one", "two")] == [50, 50]


def test_trials_are_begun_and_finished_together_or_not_at_all(store: StudyStore) -> None:
    begun = [Trial(n, (0.0, 0.1 * n), "deap") for n in range(5)]
    assert store.trials.begin("one", [replace(one, number=9) for one in begun]) == begun
    records = [trial(n, (float(n), 1.0), schedule=(0.0, 0.1 * n)) for n in range(5)]
    with pytest.raises(ValueError, match="record it as failed"):
        store.trials.finish("one", [*records[:2], replace(records[2], values=(math.nan, 1.0))])
    assert store.trials.n_ended("one") == 0
    assert store.trials.finish("one", records, "context") == 5
    assert store.trials.finish("one", records) == 0
    assert store.trials.of("one") == list(store.trials.each("one")) == records


def test_parents_and_workers_are_kept_and_older_trials_have_none(store: StudyStore) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    work = (WorkSpan("0", at, 0.25), WorkSpan("3 on gpu-box", at + timedelta(seconds=1), 0.125))
    made = replace(trial(1, (1.0, 2.0)), parents=(0,), work=work)
    with store.runs.lease("one"):
        begun = store.trials.begin("one", [trial(0, None), made])
    # A process that goes on where this one stopped finds them, too.
    with store.runs.lease("one"):
        assert store.trials.claim_waiting("one") == [Trial(0, (0.0, 0.5), "deap"), Trial(1, (0.0, 0.5), "deap", (0,))]
    store.trials.finish("one", [trial(0, (3.0, 1.0)), made])
    assert [one.number for one in begun] == [0, 1] and store.trials.of("one") == [trial(0, (3.0, 1.0)), made]
    assert [(one.parents, one.worker) for one in store.trials.of("one")] == [((), None), ((0,), "3 on gpu-box")]
    # What is empty takes no room.
    [older, _] = store.storage.get_all_trials(store.storage.get_study_id_from_name("one"))
    assert not {"parents", "work"} & set(older.user_attrs)
    shown = load("one", store).trials()
    assert shown.parents.tolist() == [(), (0,)] and shown.worker.fillna("").tolist() == ["", "3 on gpu-box"]


def test_trials_are_read_piece_by_piece(store: StudyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.store.trials._AT_ONCE", 3)
    for number in range(8):
        store.trials.append("one", trial(number, None if number == 4 else (float(number), 1.0)))
    assert list(store.trials.each("one")) == store.trials.of("one")
    assert [record.number for record in store.trials.each("one")] == list(range(8))


def test_a_single_trial_is_found_by_its_number_once_it_has_ended(store: StudyStore) -> None:
    for number in range(3):
        store.trials.append("one", trial(number, None if number == 1 else (float(number), 1.0)))
    waits = store.trials.begin("one", [running((0.5, 0.5), "deap")])[0].number
    assert [store.trials.find("one", n) for n in range(3)] == store.trials.of("one")
    assert store.trials.get("one", 2) == store.trials.of("one")[2]
    assert store.trials.find("one", waits) is None
    with pytest.raises(StorageError, match=f"no trial {waits} that a search ended"):
        store.trials.get("one", waits)


def test_a_pruned_trial_keeps_its_values_and_its_fidelity(store: StudyStore) -> None:
    pruned = replace(trial(0, (1.0, 2.0), fidelity=0.25), state=TrialState.PRUNED, constraint_violation=0.5)
    store.trials.append("one", pruned)
    assert store.trials.of("one") == [pruned] and front([pruned]) == []
    [frozen] = store.storage.get_all_trials(store.storage.get_study_id_from_name("one"))
    assert frozen.state.name == "PRUNED" and list(frozen.constraints.values()) == [0.5]


def test_evaluations_are_found_again_many_at_a_time_and_the_first_one_stays(store: StudyStore) -> None:
    schedules = [(0.0005 * n, 0.5) for n in range(1200)]
    records = [trial(n, (float(n), 1.0), schedule=schedule) for n, schedule in enumerate(schedules)]
    store.trials.begin("one", records)
    store.trials.finish("one", records, "context")
    again = store.trials.begin("one", [running(schedules[7], "deap")])[0].number
    store.trials.finish("one", [replace(records[7], number=again, metrics={"perplexity": 9.0})], "context")
    found = store.evaluations.find("context", [*schedules, (0.9, 0.9)])
    assert set(found) == set(schedules)
    assert found[schedules[7]] == records[7].metrics
    assert store.evaluations.find("other", schedules[:3]) == {}

"""No command replaces what something else has written; `--overwrite` replaces a study once the new one goes on."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from search.progress.trackers.run_ids import forget_runs, keep_run, known_run
from studies import StudyState, StudyStore
from tests.search.command import Result, run_here, run_process
from tests.search.pipeline.test_sweep import TINY
from tests.search.test_stage_kill import die
from tests.studies.records import trial

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


def finished(folder: Path, *names: str) -> None:
    """Studies in the default database of a folder that have finished a search of two trials."""
    with StudyStore(f"sqlite:///{folder / 'ftp-studies.db'}") as store:
        for name in names:
            store.studies.create(name, RunConfig(workers=1).model_dump(), OBJECTIVES)
            for number, values in enumerate([(0.0, 10.0), (0.5, 5.0)]):
                store.trials.append(name, trial(number, values, (number / 4,) * 12))
            store.studies.choose_trial(name, 1)
            store.runs.set_state(name, StudyState.FINISHED)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def settings(folder: Path, **changes: object) -> tuple[str, ...]:
    (folder / "tiny.yaml").write_text(json.dumps({**TINY, **changes}))
    return ("--config", "tiny.yaml", "--quiet")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("late", "words"),
    [
        (("--gpu-workers", "1", "--workers", "0"), "GPU"),
        (("--max-latency-ms", "0.0001", "--profile-seconds", "0.5"), "No schedule takes at most"),
    ],
    ids=["no GPU", "impossible latency"],
)
def test_a_study_is_not_replaced_by_one_that_cannot_begin(
    run: Run, tmp_path: Path, late: tuple[str, ...], words: str
) -> None:
    finished(tmp_path, "mine")
    assert run("report", "mine").code == 0
    folder = tmp_path / "ftp-out/mine"
    keep_run(folder, "mlflow", "its run")
    before = content(folder)
    result = run("run", "--name", "mine", "--overwrite", *settings(tmp_path), *late)
    assert result.code != 0 and words in result.err.splitlines()[-1]
    shown = run("show", "mine", "--json").json()
    assert (shown["state"], shown["trials"]) == ("finished", 2)
    assert [row["name"] for row in run("studies", "--json").json()] == ["mine"]
    assert content(folder) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whenever_a_replacement_is_killed_one_of_both_studies_is_there(tmp_path: Path) -> None:
    finished(tmp_path, "mine")
    again = ("run", "--name", "mine", "--overwrite", *settings(tmp_path))
    die("search", 0, tmp_path, *again)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        assert (store.studies.get("mine").state, store.trials.n_ended("mine")) == ("finished", 2)
    # What the killed one left is gone with the next one.
    die("search", 1, tmp_path, *again)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}", create=False) as store:
        assert [summary.name for summary in store.studies.summaries()] == ["mine"]
        assert store.studies.get("mine").state == "stopped" and store.studies.get("mine").config["trials"] == 4
    resumed = run_process("resume", "mine", "--quiet", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "ftp-out/mine/report.html").is_file()


@pytest.mark.parametrize("command", ["run", "search"])
@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_study_does_not_begin_where_another_has_its_results(
    run: Run, tmp_path: Path, command: str, options: tuple[str, ...]
) -> None:
    finished(tmp_path, "mine")
    assert run("report", "mine", "--out", "shared").code == 0
    (tmp_path / "link").symlink_to(tmp_path / "shared", target_is_directory=True)
    before = content(tmp_path / "shared")
    for place in ("shared", "link"):
        result = run(command, "--name", "other", "--out", place, *options)
        assert result.code == 1 and result.err.count("\n") == 1
        assert "holds the results of another study, study 'mine' of 2" in result.err
        assert "choose another folder with --out" in result.err and "--overwrite" not in result.err
    assert content(tmp_path / "shared") == before
    assert [row["name"] for row in run("studies", "--json").json()] == ["mine"]


def test_a_study_of_the_same_name_in_another_database_is_another_one(run: Run, tmp_path: Path) -> None:
    finished(tmp_path, "mine")
    assert run("report", "mine").code == 0
    before = content(tmp_path / "ftp-out")
    result = run("run", "--name", "mine", "--storage", "sqlite:///other.db")
    assert result.code == 1 and "or replace them with --overwrite" in result.err
    assert content(tmp_path / "ftp-out") == before and not (tmp_path / "other.db").exists()


def test_results_are_replaced_by_their_own_study_alone(run: Run, tmp_path: Path) -> None:
    finished(tmp_path, "mine", "other")
    assert run("report", "mine", "--out", "shared").code == 0
    before = content(tmp_path / "shared")
    for command in (("report", "other"), ("resume", "other")):
        result = run(*command, "--out", "shared")
        assert result.code == 1 and "shared holds the results of another study, study 'mine'" in result.err
    assert content(tmp_path / "shared") == before
    # The mark may be missing, say in a folder that was copied in part: the report says whose it is, too.
    (tmp_path / "shared/study.json").unlink()
    assert run("report", "other", "--out", "shared").code == 1
    assert run("report", "mine", "--out", "shared").code == 0


@pytest.mark.parametrize("name", ["report.html", "front.csv", "report.json", "study.json"])
def test_files_that_no_study_has_written_are_not_replaced(run: Run, tmp_path: Path, name: str) -> None:
    finished(tmp_path, "mine")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_text("my own\n")
    for command in (("report", "mine"), ("run", "--name", "new"), ("run", "--name", "mine", "--overwrite")):
        result = run(*command, "--out", "own")
        assert result.code == 1 and f"own holds a file {name} that no study is known to have written" in result.err
    assert content(tmp_path / "own") == {name: b"my own\n"}


def test_a_folder_of_the_users_that_is_called_like_ours_stays(tmp_path: Path) -> None:
    keep_run(tmp_path, "wandb", "a run")
    (tmp_path / "tracking/notes.txt").write_text("mine")
    forget_runs(tmp_path)
    assert known_run(tmp_path, "wandb") is None
    assert (tmp_path / "tracking/notes.txt").read_text() == "mine"


def test_a_pruned_model_is_replaced_by_its_own_study_alone(run: Run, tmp_path: Path) -> None:
    finished(tmp_path, "mine", "other")
    for _ in range(2):
        assert run("export", "mine", "pruned", "--reference").code == 0
    before = content(tmp_path / "pruned")
    result = run("export", "other", "pruned", "--reference")
    assert result.code == 1 and "pruned holds the pruned model of another study, study 'mine'" in result.err
    assert content(tmp_path / "pruned") == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model").symlink_to(tmp_path / "pruned", target_is_directory=True)
    for command in (("resume", "other"), ("run", "--name", "new")):
        result = run(*command, "--out", "out")
        assert result.code == 1 and "holds the pruned model of another study, study 'mine'" in result.err
    assert content(tmp_path / "pruned") == before
    assert run("export", "other", "pruned", "--reference", "--overwrite").code == 0
    assert json.loads((tmp_path / "pruned/schedule.json").read_text())["study"] == "other"
    # One that a program wrote with save_pretrained says of no study.
    (tmp_path / "pruned/schedule.json").unlink()
    result = run("export", "other", "pruned", "--reference")
    assert result.code == 1 and "no study is known to have written" in result.err


def test_an_export_replaces_no_file_of_something_else(run: Run, tmp_path: Path) -> None:
    finished(tmp_path, "mine")
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers/tokenizer.json").write_text("my own\n")
    result = run("export", "mine", "tokenizers", "--reference")
    assert result.code == 1 and "tokenizers holds a file tokenizer.json of something else" in result.err
    assert content(tmp_path / "tokenizers") == {"tokenizer.json": b"my own\n"}
    assert run("export", "mine", "tokenizers", "--reference", "--overwrite").code == 0


def test_a_comparison_of_other_studies_is_refused_before_the_first_study(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "ftp-out/mine"
    folder.mkdir(parents=True)
    for text in ('{"studies": [{"name": "mine-s0", "created_at": "2020-01-01T00:00:00+00:00"}]}', "my own\n"):
        (folder / "comparison.json").write_text(text)
        result = run("run", "--name", "mine", "--repeats", "2")
        assert result.code == 1 and "ftp-out/mine holds a comparison of" in result.err
        assert content(folder) == {"comparison.json": text.encode()}
        assert not (tmp_path / "ftp-studies.db").exists()


@pytest.mark.parametrize("taken", ["taken", "link"])
def test_a_file_that_is_there_is_not_replaced(run: Run, tmp_path: Path, taken: str) -> None:
    (tmp_path / "taken").write_text("my own\n")
    (tmp_path / "link").symlink_to("nowhere")
    result = run("config", taken)
    assert result.code == 2 and f"{taken} exists already" in result.err and "--overwrite" in result.err
    assert (tmp_path / "taken").read_text() == "my own\n" and not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "ftp-studies.db").exists()


@pytest.mark.parametrize("command", ["import", "export"])
def test_no_database_of_another_program_is_taken_for_optunas(run: Run, tmp_path: Path, command: str) -> None:
    finished(tmp_path, "mine")
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as raw:
        raw.execute("CREATE TABLE notes (text TEXT)")
    for place in ("theirs.db", "ftp-studies.db"):
        before = (tmp_path / place).read_bytes()
        result = run("studies", command, "--optuna", f"sqlite:///{place}")
        assert result.code == 1 and "holds tables of another program" in result.err
        assert (tmp_path / place).read_bytes() == before


def test_nothing_is_made_where_studies_are_imported_from(run: Run, tmp_path: Path) -> None:
    result = run("studies", "import", "--optuna", "sqlite:///nowhere.db")
    assert result.code == 1 and "There are no studies of Optuna in sqlite:///nowhere.db" in result.err
    assert list(tmp_path.iterdir()) == []


def test_the_demo_models_training_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "ftp_core.demo.train", "--out", tmp_path / "model", "--work", tmp_path / "work"],
        **{"capture_output": True, "text": True, "check": False},
    )
    assert done.returncode == 2 and "is there already: choose another --out" in done.stderr
    assert content(tmp_path) == {"model/config.json": b"{}"}

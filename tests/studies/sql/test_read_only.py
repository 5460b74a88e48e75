"""A database that can only be read is read, and says so where it would be written to."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from studies import StorageError, StudyState, StudyStore, load
from tests.search.command import Result, run_here
from tests.studies.postgres import PostgresServer
from tests.studies.records import trial
from tests.studies.sql.test_migration import of_revision

Run = Callable[..., Result]
NOBODY = 65534


@contextmanager
def without_rights() -> Iterator[None]:
    """Context in which this process has no right to what is not its own; root may write everywhere."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may look into, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="ftp-read-only-"))
    path.chmod(0o755)
    yield path
    for place in (path, *path.rglob("*")):
        place.chmod(0o755)
    shutil.rmtree(path)


def filled(path: Path) -> None:
    with StudyStore(f"sqlite:///{path}") as store:
        store.studies.create("mine", RunConfig(workers=1, cost="flops").model_dump(), ("kl", "flops"))
        for number, values in enumerate([(0.0, 10.0), (0.5, 5.0)]):
            store.trials.append("mine", trial(number, values, (number / 4,) * 12))
        store.studies.choose_trial("mine", 1)
        store.runs.set_state("mine", StudyState.FINISHED)


def close(path: Path, what: str) -> None:
    """Take the right to write away from a file, its folder, or both."""
    path.chmod(0o644 if what == "folder" else 0o444)
    path.parent.chmod(0o777 if what == "file" else 0o555)


@pytest.mark.parametrize("what", ["file", "folder", "both"])
def test_it_is_listed_shown_reported_and_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, what: str
) -> None:
    kept, own = folder / "kept", folder / "own"
    kept.mkdir()
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    filled(kept / "studies.db")
    close(kept / "studies.db", what)
    before = sorted(path.name for path in kept.iterdir()), (kept / "studies.db").read_bytes()
    storage = ("--storage", f"sqlite:///{kept / 'studies.db'}")

    def run(*arguments: str) -> Result:
        return run_here(monkeypatch, capsys, own, *arguments)

    # Without rights, Python may not import what it has not imported yet.
    filled(folder / "known.db")
    known = ("--storage", f"sqlite:///{folder / 'known.db'}")
    assert run("report", "mine", "--out", "known", *known).code == 0
    assert run("studies", "export", "--optuna", "sqlite:///known.db", *known).code == 0
    importlib.import_module("search.pipeline.create")
    importlib.import_module("pandas")

    with without_rights():
        assert [row["name"] for row in run("studies", "--json", *storage).json()] == ["mine"]
        assert run("show", "mine", "--json", *storage).json()["trials"] == 2
        assert run("report", "mine", "--out", "report", *storage).code == 0
        assert (own / "report/report.html").is_file()
        assert run("studies", "export", "--optuna", "sqlite:///optuna.db", *storage).code == 0
        assert len(optuna.load_study(study_name="mine", storage=f"sqlite:///{own / 'optuna.db'}").trials) == 2
        assert run("db", "check", *storage).code == 0
        for command in (("delete", "mine"), ("resume", "mine"), ("workers", "mine", "2"), ("search", "--name", "new")):
            refused = run(*command, *storage)
            assert refused.code == 1 and "can be read here, but not written to" in refused.err, command
            assert refused.err.count("\n") == 1
        study = load("mine", storage[1])
        assert len(study.trials()) == 2 and study.best().number in (0, 1)
    assert (sorted(path.name for path in kept.iterdir()), (kept / "studies.db").read_bytes()) == before


def test_what_its_writer_has_in_the_log_is_read_too(folder: Path) -> None:
    kept = folder / "kept"
    kept.mkdir()
    filled(kept / "studies.db")
    url = f"sqlite:///{kept / 'studies.db'}"
    with StudyStore(url) as writer:
        writer.trials.append("mine", trial(2, (0.25, 7.0), (0.1,) * 12))
        assert (kept / "studies.db-wal").stat().st_size > 0
        kept.chmod(0o555)
        with without_rights(), StudyStore(url, create=False) as reader:
            assert reader.trials.n_ended("mine") == 3
            writer.trials.append("mine", trial(3, (0.25, 7.0), (0.1,) * 12))
            assert reader.trials.n_ended("mine") == 4


def test_an_old_schema_that_cannot_be_upgraded_in_its_place_says_where_it_can(folder: Path) -> None:
    kept = folder / "kept"
    kept.mkdir()
    of_revision(kept / "studies.db", "0000")
    close(kept / "studies.db", "both")
    with without_rights(), pytest.raises(StorageError, match="can only be read here: copy it to where it can be writ"):
        StudyStore(f"sqlite:///{kept / 'studies.db'}", create=False)


def test_a_user_of_postgresql_without_the_right_to_write_reads(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    with StudyStore(url) as store:
        store.studies.create("mine", RunConfig(workers=1).model_dump(), OBJECTIVES)
        store.trials.append("mine", trial(0, (1.0, 2.0)))
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in ("DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN"):
            connection.execute(sa.text(statement))
        connection.execute(sa.text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
    engine.dispose()
    readers = sa.make_url(url).set(username="reader").render_as_string(hide_password=False)
    with StudyStore(readers, create=False) as store:
        assert [summary.name for summary in store.studies.summaries()] == ["mine"]
        assert store.trials.n_ended("mine") == 1 and store.studies.get("mine").config["workers"] == 1
        with pytest.raises(StorageError, match="permission denied"):
            store.delete_study("mine")

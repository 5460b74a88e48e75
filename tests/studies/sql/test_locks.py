"""A process that opens a database several times keeps its hold on it: what it commits is there for everybody."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from studies import StudyStorage, StudyStore
from studies.service.service_store import ServiceStore
from tests.conftest import ROOT

# Adds a study, prints the names of all, and is the last to leave, unless somebody holds the database.
OTHER = """
import sys
from studies import StudyStore
with StudyStore(sys.argv[1]) as store:
    store.studies.create(sys.argv[2], {"trials": 1}, ("kl",))
    print(*(one.name for one in store.studies.summaries()))
"""


def elsewhere(url: str, name: str) -> list[str]:
    """Names of all studies, in another process that has added one."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", OTHER, url, name], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def open_and_close(url: str) -> None:
    StudyStore(url).close()


def open_for_optuna(url: str) -> None:
    StudyStorage(url).close()


def open_for_a_service(url: str) -> None:
    ServiceStore(url).close()


def open_what_is_there(url: str) -> None:
    StudyStore(url, create=False).close()


def open_by_a_link(url: str) -> None:
    # A name that leads to the same file.
    other = Path(url.removeprefix("sqlite:///")).with_name("link.db")
    other.symlink_to(url.removeprefix("sqlite:///"))
    StudyStore(f"sqlite:///{other}").close()


@pytest.mark.parametrize(
    "again",
    [open_and_close, open_for_optuna, open_for_a_service, open_what_is_there, open_by_a_link],
    ids=lambda f: f.__name__,
)
def test_what_is_committed_beside_a_second_opening_is_kept(tmp_path: Path, again: Callable[[str], None]) -> None:
    file = tmp_path / "s.db"
    url = f"sqlite:///{file}"
    with StudyStore(url) as store:
        store.studies.create("first", {"trials": 1}, ("kl",))
        index = Path(f"{file}-shm").stat().st_ino
        again(url)
        assert elsewhere(url, "second") == ["first", "second"]
        # The other process has seen that it is not alone, and left the log.
        assert Path(f"{file}-shm").stat().st_ino == index
        store.studies.create("third", {"trials": 1}, ("kl",))
        assert elsewhere(url, "fourth") == ["first", "second", "third", "fourth"]
    assert elsewhere(url, "fifth") == ["first", "second", "third", "fourth", "fifth"]

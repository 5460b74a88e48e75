"""The command `measure` takes trials of a finished study, and refuses others before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from studies import StudyState, StudyStore
from tests.search.command import run_here
from tests.studies.records import trial


@pytest.mark.parametrize(
    ("state", "options", "error"),
    [
        (StudyState.STOPPED, ("--trial", "0"), "'one' is stopped: .*`ftp-search resume one` goes on with it"),
        (
            StudyState.FINISHED,
            ("--trial", "0", "--trial", "1", "--select"),
            "--select selects one trial, and .* names 2",
        ),
        (StudyState.FINISHED, ("--trial", "9"), "Trial 9 is asked for, but study 'one' has no such trial"),
        (StudyState.FINISHED, ("--trial", "-1"), "also_measure|--also-measure"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: StudyState,
    options: tuple[str, ...],
    error: str,
) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        config = RunConfig(workers=1)
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        for number in range(2):
            store.trials.append("one", trial(number, (1.0, 2.0)))
        store.runs.set_state("one", state)
    result = run_here(monkeypatch, capsys, tmp_path, "measure", "one", *options)
    assert result.code == 2 and not result.out and re.search(error, result.err)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        assert RunConfig.stored(store.studies.get("one").config) == config

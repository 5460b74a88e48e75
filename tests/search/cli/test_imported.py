"""Studies that come from Optuna's databases are there for every command, and go on if this program has begun them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from studies import StudyStorage
from tests.search.command import Result, run_here
from tests.search.pipeline.test_sweep import TINY

Run = Callable[..., Result]
THEIRS = "sqlite:///theirs.db"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@pytest.fixture
def optunas(tmp_path: Path) -> None:
    """A study of Optuna's alone in a database of Optuna's own."""
    study = optuna.create_study(study_name="rosenbrock", storage=f"sqlite:///{tmp_path / 'theirs.db'}")
    study.set_user_attr("owner", "ada")
    for x in (0.5, 0.25):
        one = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
        study.tell(one, x)
    study.ask()


@pytest.mark.slow
def test_an_imported_study_is_shown_and_goes_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    assert run("search", "--name", "mine", "--config", "tiny.yaml", "--quiet").code == 0
    before = run("show", "mine", "--json").json()
    assert run("studies", "export", "--optuna", THEIRS).code == 0
    other = ("--storage", "sqlite:///other.db")
    assert run("studies", "import", "--optuna", THEIRS, *other).code == 0
    assert run("show", "mine", "--json", *other).json() == before
    assert [row["name"] for row in run("studies", "--json", *other).json()] == ["mine"]
    resumed = run("resume", "mine", "--trials", "5", "--quiet", "--json", *other)
    assert resumed.code == 0, resumed.err
    assert resumed.json()["trials"] == 5 and resumed.json()["state"] == "finished"


@pytest.mark.usefixtures("optunas")
def test_a_study_of_optunas_alone_is_there_for_every_command(run: Run, tmp_path: Path) -> None:
    assert run("studies", "import", "--optuna", THEIRS).code == 0
    assert run("studies", "--json").json() == [
        {
            **{"name": "rosenbrock", "state": "optuna", "trials": 2, "created_at": None, "model": None, "data": None},
            **{"sweep": None, "tags": [], "note": ""},
        }
    ]
    assert "rosenbrock" in run("studies").out
    shown = run("show", "rosenbrock", "--json").json()
    assert shown["trials_by_state"] == {"complete": 2, "running": 1} and shown["directions"] == ["minimize"]
    assert shown["best"] == [{"number": 1, "values": [0.25], "params": {"x": shown["best"][0]["params"]["x"]}}]
    assert (shown["parameters"], shown["attributes"]) == (["x"], {"owner": "ada"})
    said = run("show", "rosenbrock").out
    assert "study rosenbrock: Optuna's alone" in said and "cannot be resumed" in said
    for command in ("resume", "distill", "report", "workers", "export"):
        more = {"workers": ("2",), "export": ("pruned",)}.get(command, ())
        refused = run(command, "rosenbrock", *more)
        assert refused.code == 1 and refused.err.count("\n") == 1
        assert "'rosenbrock' in" in refused.err and "is one of Optuna's alone" in refused.err
    taken = run("run", "--name", "rosenbrock")
    assert taken.code == 1 and "A study named 'rosenbrock' exists" in taken.err
    assert run("delete", "rosenbrock").code == 0
    assert run("studies", "--json").json() == [] and run("delete", "rosenbrock").code == 1
    assert StudyStorage(f"sqlite:///{tmp_path / 'ftp-studies.db'}").get_all_studies() == []


@pytest.mark.usefixtures("optunas")
def test_a_study_of_optunas_that_has_not_begun_is_shown(run: Run, tmp_path: Path) -> None:
    storage = StudyStorage(f"sqlite:///{tmp_path / 'ftp-studies.db'}")
    optuna.create_study(study_name="two", storage=storage, directions=["minimize", "maximize"])
    shown = run("show", "two", "--json").json()
    assert (shown["trials"], shown["best"], shown["directions"]) == (0, [], ["minimize", "maximize"])
    assert "trials: none" in run("show", "two").out

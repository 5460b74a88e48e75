"""Studies are run, resumed and looked at from Python as the commands do it."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import search
from ftp_core import FTPForCausalLM
from ftp_core.demo.examples import demo_examples
from ftp_core.schedule import SparsitySchedule
from search.cli.show import describe_study
from search.cli.tables import in_short, print_results
from search.config.run_config import RESUMABLE
from search.stages.export import export_study
from studies import StudyExistsError, StudyNotFoundError, StudyStore
from tests.search.command import evaluate_here, run_here

SMALL = {
    "cost": "flops",
    "workers": 1,
    "trials": 24,
    "rounds": 0,
    "search_items": 4,
    "calibration_items": 8,
    "validation_items": 8,
    "test_items": 8,
    "measured_points": 2,
    "timed_runs": 2,
    "new_tokens": (0,),
    "latency_length": (64,),
    "export": "reference",
}


@pytest.mark.timeout(1200)
def test_a_study_is_run_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate_here(monkeypatch)
    study = search.run("one", quiet=True, out=Path("results"), **SMALL)
    assert study.name == "one" and len(study.trials()) == 24 and len(study.front()) >= 1
    assert (tmp_path / "results/report.html").is_file() and (tmp_path / "results/model/config.json").is_file()
    with pytest.raises(StudyExistsError):
        search.run("one", quiet=True, **SMALL)
    assert len(search.resume("one", quiet=True, trials=26).trials()) == 26
    assert len(search.load("one").trials()) == 26
    before = search.load("one").record
    solved = search.solve("one", target_flops_saved=0.2, best=2, quiet=True)
    assert solved.best.flops_saved >= 0.2 and solved.best.kl <= min(one.kl for one in solved.solutions)
    trials = search.load("one").trials()
    n_solved = len(trials) - 26
    assert 1 <= n_solved <= 3 and set(trials.proposer[26:]) == {"solve"}
    after = search.load("one").record
    assert (after.state, after.chosen_trial) == (before.state, before.chosen_trial)
    # Somebody may select another trial than the rules do, which is tested and exported then.
    other = next(int(number) for number in search.load("one").front().index if number != before.chosen_trial)
    with pytest.raises(search.ConfigError, match="a new study has none yet"):
        search.run("two", quiet=True, select_trial=other, **SMALL)
    asked = ("--trial", str(other), "--select", "--quiet", "--json")
    assert run_here(monkeypatch, capsys, tmp_path, "measure", "one", *asked).code == 0
    assert search.load("one").best().number == other
    written = json.loads((tmp_path / "results/model/schedule.json").read_text())
    assert written["trial"] == other and "was asked for" in (tmp_path / "results/report.md").read_text()
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        assert any(one.trial == other and one.split == "test" for one in store.results.measurements("one"))
    # They count for no budget.
    after = search.resume("one", quiet=True, trials=27, select_trial="auto")
    assert len(after.trials()) == 27 + n_solved and after.record.facts.selection.rule == "knee"
    with pytest.raises(search.ConfigError, match="trials is none of what solve takes"):
        search.solve("one", trials=3)
    with pytest.raises(StudyNotFoundError):
        search.solve("other", target_sparsity=0.3)


@pytest.mark.timeout(600)
def test_halves_with_kept_keys_go_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate_here(monkeypatch)
    halves = {"granularity": "half", "kv": "keep", "target_flops_saved": 0.3, "router": "dynamic", "export": "full"}
    halves |= {"keys": "fitted"}
    trained = {"rounds": 1, "refine_trials": 2, "router_trials": 0, "router_steps": 2, "router_schedules": 1}
    data = tmp_path / "data.jsonl"
    pairs = [{"prompt": one.prompt, "completion": one.completion} for one in demo_examples("calibration", 60)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    study = search.run("one", quiet=True, data=data, **{**SMALL, **halves, **trained, "trials": 8})
    best = study.best()
    assert best.metrics["flops"] <= 0.7 * study.record.facts.dense_costs["flops"]
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        tested = {one.variant for one in store.results.measurements("one") if one.split == "test"}
        shown, trials = describe_study(store, "one"), store.trials.of("one")
    # Which point is selected, the clock decides.
    chosen = shown["front"][0]
    [schedule] = [one.schedule for one in trials if one.number == chosen["number"]]
    selected = [row["schedule"] for row in shown["measurements"] if row["selected"]]
    assert {SparsitySchedule.from_json(one) for one in selected} == {best.schedule}
    assert SparsitySchedule.from_json(chosen["schedule"]) == SparsitySchedule.of(schedule)
    console = Console(file=StringIO(), width=1000)
    print_results(console, shown)
    assert in_short(SparsitySchedule.from_json(chosen["schedule"])) in " ".join(console.file.getvalue().split())
    assert tested >= {"dense", "uniform", "static", "dynamic"}
    model = FTPForCausalLM.from_pretrained(tmp_path / "ftp-out/one/model")
    assert model.schedule == best.schedule and not model.schedule.is_plain
    assert any(block.keeps_kv for block in model.schedule.blocks)
    # What it was measured with goes along, whether it is written at once or later.
    assert model.substitutes is not None and any(one.any() for one in model.substitutes.parameters())
    assert model.kept_projections is not None and model.kept_projections.fitted_to == best.schedule
    # The database keeps it, so that the data may be gone by then.
    data.unlink()
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        export_study(store, "one", tmp_path / "again", include_base=False)
    again = FTPForCausalLM.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.substitutes.state_dict(), model.substitutes.state_dict(), atol=0, rtol=0)
    assert again.kept_projections is not None and again.kept_projections.names == model.kept_projections.names
    fitted = (one.kept_projections.state_dict() for one in (again, model))
    torch.testing.assert_close(*fitted, atol=1e-6, rtol=1e-5)
    assert (tmp_path / "ftp-out/one/report.html").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trails": 5}, "trails is unknown: did you mean trials?"),
        ({"trials": 0}, "trials is 0: expected"),
        ({"model": "nowhere/at/all", "cost": "flops"}, "nowhere/at/all"),
        ({"data": "missing.jsonl"}, "missing.jsonl"),
        ({"out": "file"}, "is a file: expected a folder to write to"),
    ],
)
def test_what_cannot_be_run_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        search.run(quiet=True, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_settings_that_are_fixed_are_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    with StudyStore(storage):
        pass
    for field in sorted(search.RunConfig.model_fields.keys() - set(RESUMABLE)):
        with pytest.raises(search.ConfigError, match=f"{field} is fixed once a study has begun: expected some of"):
            search.resume("one", storage=storage, **{field: 1})


def test_the_packages_show_their_public_names_and_load_nothing_for_it() -> None:
    code = (
        "import sys, search, ftp_core; names = dir(search), dir(ftp_core);"
        "assert names == (search.__all__, ftp_core.__all__), names;"
        "print([name for name in ('torch', 'ray', 'optuna', 'transformers') if name in sys.modules]);"
        # A service checks what is to be compared, and loads no model.
        "import ftp_core.baselines, search.comparison.plan; assert 'torch' not in sys.modules;"
        "assert dir(ftp_core.baselines) == ftp_core.baselines.__all__;"
        "import studies, dashboards; assert dir(studies) == studies.__all__ and dir(dashboards) == dashboards.__all__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(getattr(search, name) for name in search.__all__)

"""A sweep is a study for each model, target and seed, which can be stopped, fails alone, and is compared at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.config.run_config import RunConfig
from search.config.sweep_plan import Sweep, read_sweep, repeated
from search.errors import ConfigError
from search.evaluators.ray_cluster import cluster
from search.problem.objectives import OBJECTIVES
from studies import StudyStore
from studies.records.labels import Labels
from tests.search.command import COMMAND, Result, heed_signals, run_here, run_process

Run = Callable[..., Result]
Write = Callable[[str], Path]

# Little of everything, and no latency profile.
TINY = {
    **{"trials": 4, "rounds": 0, "router_steps": 4, "workers": 1, "cost": "flops", "export": "none"},
    **{"calibration_items": 8, "search_items": 4, "validation_items": 8, "test_items": 8},
    **{"latency_batch": 1, "measured_points": 1, "timed_runs": 2},
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text)
        return path

    return to_file


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Ray takes seconds to start: once for all tests."""
    with cluster(None, 1):
        yield


def names(sweep: Sweep) -> list[str]:
    return [study.name for study in sweep.studies]


def test_every_model_meets_every_target_and_every_seed(write: Write) -> None:
    text = """
name: all
models:
- demo
- {model: org/Large-3.2, data: mine.jsonl, trials: 7}
targets: [0.3, 0.50, null]
seeds: [4, 5]
base: {trials: 5, rounds: 0}
"""
    sweep = read_sweep(write(text))
    assert names(sweep) == [
        f"all-{model}-{target}-s{seed}"
        for model in ("demo", "Large-3.2")
        for target in ("t0.3", "t0.5", "any")
        for seed in (4, 5)
    ]
    first, last = sweep.studies[0], sweep.studies[-1]
    assert first.config == RunConfig(model="demo", target_sparsity=0.3, seed=4, trials=5, rounds=0)
    data = str(write("").parent / "mine.jsonl")
    assert last.config == RunConfig(model="org/Large-3.2", data=data, seed=5, trials=7, rounds=0)
    assert (last.model, sweep.folder) == ("Large-3.2", Path("ftp-out/all"))


def test_names_hold_what_the_file_lists_and_no_more(write: Write) -> None:
    assert names(read_sweep(write("seeds: 3\n"))) == ["sweep-s0", "sweep-s1", "sweep-s2"]
    assert names(read_sweep(write("targets: [0.3]\nbase: {seed: 7}\n"))) == ["sweep-t0.3"]
    saved = read_sweep(write("targets_flops_saved: [0.3, 0.45, null]\n"))
    assert names(saved) == ["sweep-flops0.3", "sweep-flops0.45", "sweep-any"]
    assert [str(one.config.target) for one in saved.studies] == ["30 % of FLOPs saved", "45 % of FLOPs saved", "None"]
    faster = read_sweep(write("targets_speedup: [1.5]\nseeds: [2]\n"))
    assert names(faster) == ["sweep-speedup1.5-s2"]
    assert faster.studies[0].config == RunConfig(target_speedup=1.5, seed=2)
    assert names(read_sweep(write("models: [./deep/one, {name: two, model: ./other/one}]\n"))) == [
        "sweep-one",
        "sweep-two",
    ]


def test_names_and_folders_are_normalised_as_those_of_other_new_studies(write: Write) -> None:
    sweep = read_sweep(write("name: mu\u0308ller\nseeds: 1\nbase: {out: results}\n"))
    assert names(sweep) == ["m\u00fcller-s0"] and Path(sweep.studies[0].config.out or "").name == "m\u00fcller-s0"


def test_files_of_a_study_go_to_a_folder_of_its_own(write: Write, tmp_path: Path) -> None:
    sweep = read_sweep(write("seeds: 2\nbase: {out: results}\n"))
    assert sweep.folder == tmp_path / "results"
    assert [study.config.folder(study.name) for study in sweep.studies] == [
        tmp_path / "results/sweep-s0",
        tmp_path / "results/sweep-s1",
    ]


def test_repeats_are_a_sweep_over_seeds() -> None:
    sweep = repeated("mine", RunConfig(seed=3, trials=5, out="/results"), 2)
    assert names(sweep) == ["mine-s3", "mine-s4"]
    assert [study.config.seed for study in sweep.studies] == [3, 4]
    assert (sweep.folder, sweep.studies[1].config.out) == (Path("/results"), "/results/mine-s4")
    with pytest.raises(ConfigError, match="--seed is 4294967296"):
        repeated("mine", RunConfig(seed=2**32 - 1), 2)


WRONG: list[tuple[str, str]] = [
    ("modles: [demo]\n", "sweep.yaml, line 1: modles is unknown: did you mean models?"),
    ("trials: 3\n", "line 1: trials is unknown: expected one of name, models, targets, targets_flops_saved,"),
    ("base:\n  trails: 3\n", "line 2: trails is unknown: did you mean trials?"),
    ("base:\n  trials: 0\n", "line 2: trials is 0: expected a number greater than or equal to 1."),
    ("base: 3\n", "line 1: base is 3: expected settings such as 'trials: 300'."),
    ("base: {version: 2}\n", "line 1: version is unknown"),
    ("seeds: [1]\nbase:\n  seed: 2\n", "line 3: seed has no place here: give it under seeds."),
    ("targets: [0.3]\nbase: {target_sparsity: 0.4}\n", "target_sparsity has no place here: give it under targets."),
    ("targets: [0.3]\nbase: {target_speedup: 2}\n", "give it under targets_speedup instead of targets."),
    ("targets_speedup: [1.0]\n", "line 1: target_speedup is 1.0: expected a number greater than 1."),
    (
        "targets: [0.3]\ntargets_speedup: [2]\n",
        "line 2: targets and targets_speedup are all given: expected targets of one kind.",
    ),
    ("models:\n- demo\nbase: {model: demo}\n", "line 3: model has no place here: give it under models."),
    ("models:\n- {model: demo, out: here}\n", "line 2: out has no place here: give it under base."),
    ("models:\n- demo\n- model: demo\n  trials: 0\n", "line 4: trials is 0"),
    ("models: [{data: demo}]\n", "line 1: one of models is {'data': 'demo'}: expected a model"),
    ("models: [3]\n", "one of models is 3: expected a model"),
    ("models: demo\n", "line 1: models is 'demo': expected a list."),
    ("models: []\n", "line 1: models is []: expected a list."),
    ("targets: 0.3\n", "line 1: targets is 0.3: expected a list."),
    ("targets:\n- 0.3\n- 1.3\n", "line 3: target_sparsity is 1.3: expected a number less than or equal to 0.95."),
    ("seeds: 0\n", "line 1: seeds is 0: expected a list or a number of them."),
    ("seeds: [one]\n", "line 1: seed is 'one': expected a whole number."),
    ("seeds: [1, 1]\n", "two studies would be called 'sweep-s1'"),
    ("models: [a/one, b/one]\n", "two studies would be called 'sweep-one'"),
    ("name: 3\n", "line 1: name is 3: expected text."),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text.strip().replace("\n", " | ") for text, _ in WRONG])
def test_a_mistake_is_one_line_with_its_place_and_leaves_nothing(
    run: Run, write: Write, tmp_path: Path, text: str, words: str
) -> None:
    write(text)
    result = run("sweep", "sweep.yaml")
    assert result.code == 2 and words in result.err
    assert result.err.count("\n") == 1 and result.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 2, "sweep.yaml names no study: expected one or more of models, targets, targets_flops_saved,"),
        ("# seeds: 3\nname: mine\n", 2, "sweep.yaml names no study"),
        ("name: a/b\nseeds: 1\n", 2, "without slashes"),
        ("models: [demo, ./nowhere]\n", 1, "No model at"),
        ("base: {data: nowhere.jsonl}\n", 1, "nowhere.jsonl"),
        ("base: {out: sweep.yaml}\n", 2, "sweep.yaml is a file"),
    ],
)
def test_what_cannot_be_used_is_found_out_before_the_first_study(
    run: Run, write: Write, tmp_path: Path, text: str, code: int, words: str
) -> None:
    write(text)
    result = run("sweep", "sweep.yaml")
    assert result.code == code and words in result.err and result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_nothing_is_overwritten_before_all_can_begin(run: Run, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("mine-s0", RunConfig().model_dump(), OBJECTIVES)
    result = run("run", "--name", "mine", "--repeats", "2", "--overwrite", "--data", "nowhere.jsonl")
    assert result.code == 1 and "nowhere.jsonl" in result.err
    assert [row["name"] for row in run("studies", "--json").json()] == ["mine-s0"]


def test_a_study_that_was_begun_otherwise_is_refused_with_what_differs(run: Run, write: Write, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("sweep-s1", RunConfig(seed=1, trials=9, workers=7).model_dump(), OBJECTIVES)
    # More workers change nothing of what is searched for.
    write("seeds: [0, 1]\nbase: {trials: 8, workers: 1}\n")
    result = run("sweep", "sweep.yaml")
    assert result.code == 2
    assert "'sweep-s1' was begun with other settings: trials was 9 and is 8. Restore them" in result.err
    listed = run("studies", "--json").json()
    assert [(row["name"], row["trials"]) for row in listed] == [("sweep-s1", 0)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_one_study_fails_alone_and_what_has_finished_is_not_run_again(run: Run, write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(TINY))
    # Its search has ended already, under the name that the sweep gives it.
    assert run("search", "--name", "sweep-demo-s1", "--config", "base.yaml", "--seed", "1").code == 0
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        begun = store.trials.of("sweep-demo-s1")
    broken = {"name": "broken", "model": "demo", "dense_blocks": [99]}
    write(json.dumps({"models": [broken, "demo"], "seeds": [1], "base": TINY}))
    result = run("sweep", "sweep.yaml", "--json")
    assert result.code == 1
    assert "Study 1 of 2: sweep-broken-s1" in result.err and "Study 2 of 2: sweep-demo-s1" in result.err
    shown = result.json()
    assert [(study["name"], study["state"]) for study in shown["studies"]] == [
        ("sweep-broken-s1", "failed"),
        ("sweep-demo-s1", "finished"),
    ]
    assert "Dense block 99 is none of the model's 12" in shown["studies"][0]["error"]
    assert {row["model"] for row in shown["comparison"]} == {"demo"}
    assert all(Path(tmp_path, path).is_file() for path in shown["written"])
    assert (tmp_path / "ftp-out/sweep-demo-s1/report.html").is_file()
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        assert store.trials.of("sweep-demo-s1") == begun
        stages = store.runs.stages("sweep-demo-s1")

    write(json.dumps({"models": ["demo"], "seeds": [1], "base": {**TINY, "workers": 2}}))
    again = run("sweep", "sweep.yaml")
    assert again.code == 0 and "sweep-demo-s1 has finished" in again.out
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        assert store.runs.stages("sweep-demo-s1") == stages


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_repeats_differ_in_their_seed_and_are_compared(run: Run, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(TINY))
    options = ("run", "--name", "mine", "--config", "base.yaml", "--repeats", "2", "--seed", "5", "--quiet")
    options += ("--tag", "paper", "--note", "two seeds")
    result = run(*options)
    # Once of each study.
    assert result.code == 0
    assert result.err == 2 * "--router-steps has no effect: no router is distilled with --rounds 0.\n"
    assert "mine-s5 has finished" in result.out and "mine-s6 has finished" in result.out
    rows = json.loads((tmp_path / "ftp-out/mine/comparison.json").read_text())["rows"]
    means = [row for row in rows if row["kind"] == "mean"]
    assert {row["seeds"] for row in means} == {"5 6"}
    assert {row["variant"] for row in means} >= {"dense", "uniform", "static", "selected"}
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        first, second = (store.studies.get(f"mine-s{seed}") for seed in (5, 6))
    assert first.labels == second.labels == Labels(("paper",), "two seeds", "mine")
    assert first.facts.data_fingerprint != second.facts.data_fingerprint
    # Each has its own folder, wherever it is resumed from.
    assert second.config["out"] == str(tmp_path / "ftp-out/mine-s6")
    assert {**first.config, "seed": 6, "out": second.config["out"]} == second.config

    # Everything has finished: the report is written again, here to another place, which is kept.
    resumed = run("resume", "mine-s5", "--out", "elsewhere", "--json")
    assert resumed.code == 0
    assert str(tmp_path / "elsewhere/report.html") in resumed.json()["written"]
    assert resumed.json()["config"]["out"] == str(tmp_path / "elsewhere") and resumed.json()["trials"] == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_sweep_goes_on_with_the_same_command(tmp_path: Path) -> None:
    long = {**TINY, "trials": 100_000}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"seeds": 2, "base": long}))
    running = subprocess.Popen(
        [*COMMAND, "sweep", "sweep.yaml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_signals,
    )
    try:
        while running.poll() is None and n_trials(tmp_path, "sweep-s0") < 3:
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Stopped. 0 of 2 studies have finished; go on with the same command" in err
    kept = n_trials(tmp_path, "sweep-s0")
    (tmp_path / "sweep.yaml").write_text(json.dumps({"seeds": 2, "base": TINY}))
    changed = run_process("sweep", "sweep.yaml", cwd=tmp_path)
    assert changed.code == 2 and "trials was 100000 and is 4" in changed.err
    assert n_trials(tmp_path, "sweep-s0") == kept >= 3 and n_trials(tmp_path, "sweep-s1") == 0


def n_trials(folder: Path, name: str) -> int:
    """Trials of a study in the default database of a folder; 0 before there is one."""
    if not (folder / "ftp-studies.db").exists():
        return 0
    with StudyStore(f"sqlite:///{folder / 'ftp-studies.db'}") as store:
        return sum(summary.n_trials for summary in store.studies.summaries() if summary.name == name)

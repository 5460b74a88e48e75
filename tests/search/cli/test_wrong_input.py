"""Wrong input is one clear line before any work starts, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftp_core import FTPForCausalLM
from ftp_core.loading.models import load_model
from search.config.run_config import OF_NEW_STUDIES, SETTINGS, RunConfig
from search.config.setting import option
from search.problem.objectives import OBJECTIVES
from studies import StudyState, StudyStore, Trial, TrialState
from studies.records.study_facts import Ablations, StudyFacts
from tests.search.command import Result, run_here
from tests.studies.other_programs import interfere

Run = Callable[..., Result]
COMMANDS = (
    *(
        "run",
        "search",
        "resume",
        "sweep",
        "config",
        "workers",
        "distill",
        "report",
        "studies",
        "show",
        "label",
        "delete",
    ),
    "export",
    "label",
    "prompt",
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@pytest.fixture
def study(tmp_path: Path) -> str:
    """A finished search in the default database of `tmp_path`."""
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("mine", RunConfig(workers=1).model_dump(), OBJECTIVES)
        for number, (level, values) in enumerate([(0.0, (0.0, 10.0)), (0.5, (0.3, 6.0)), (0.2, (0.4, 9.0))]):
            store.trials.append(
                "mine",
                Trial(
                    number=number,
                    schedule=(level,) * 12,
                    values=values,
                    state=TrialState.FINISHED,
                    fidelity=1.0,
                    proposer="deap",
                    seconds=0.1,
                    finished_at=datetime.now(UTC),
                ),
            )
        store.studies.choose_trial("mine", 1)
        store.runs.set_state("mine", StudyState.FINISHED)
    return "mine"


@pytest.mark.parametrize(
    ("said", "spins"),
    [
        (None, range(1, 20_000)),
        ("active", range(10**6, 10**12)),
        pytest.param("passive", [0], marks=pytest.mark.slow),
    ],
)
def test_threads_spin_briefly_while_they_wait_unless_the_user_says_otherwise(
    said: str | None, spins: Container[int]
) -> None:
    # OpenMP reads what it is told when torch is imported, and says then what it has read.
    told = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    told |= {"OMP_DISPLAY_ENV": "verbose"} | ({} if said is None else {"OMP_WAIT_POLICY": said})
    done = subprocess.run(
        [sys.executable, "-c", "import search.cli, torch"], env=told, capture_output=True, text=True, check=True
    )
    counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert counts and all(int(count) in spins for count in counts)


def test_show_says_what_proposers_have_done(run: Run, study: str, tmp_path: Path) -> None:
    assert run("show", study, "--json").json()["proposers"] == []
    tally = {"asked": 4, "repeated": 1, "finished": 3, "seconds": 0.01, "gain": 0.25, "share": 0.5}
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.runs.keep_proposer_states(study, {"deap": tally})
    assert run("show", study, "--json").json()["proposers"] == [{"name": "deap", **tally}]
    assert "deap 4 1 3 2.50 0.25 50%" in " ".join(run("show", study).out.split())


def test_a_study_is_labelled_and_goes_on_as_before(run: Run, study: str) -> None:
    config = run("show", study, "--json").json()["config"]
    assert run("label", study).out == "" and "tags" not in run("studies").out
    labelled = run(
        "label", study, "--tag", "pa per", "--tag", "mu\u0308ller", "--note", " two\nlines ", "--json"
    ).json()
    assert labelled == {"name": study, "tags": ["pa per", "m\u00fcller"], "note": "two\nlines", "sweep": None}
    assert run("label", study, "--note", "one").out == "tags: pa per, m\u00fcller\nnote: one\n"
    shown = run("show", study)
    assert "tags: pa per, m\u00fcller" in shown.out and "note: one" in shown.out and "tags" in run("studies").out
    assert run("studies", "--json").json()[0]["tags"] == labelled["tags"]
    assert run("show", study, "--json").json()["config"] == config
    assert run("label", study, "--no-tags", "--json").json()["tags"] == []
    assert "'nobody'" in run("label", "nobody", "--tag", "a").err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tag", "a,b"), "tags have 'a,b': expected text without commas"),
        (("--tag", " a"), "tags have ' a': expected text without blanks at its ends."),
        (("--tag", ""), "tags have '': expected text that is not empty."),
        (("--tag", "\x1b[1m"), "expected printable characters"),
        (("--tag", "x" * 41), "expected at most 40 characters"),
        (tuple(f"--tag={number}" for number in range(21)), "tags are 21: expected at most 20."),
        (("--note", "\x1b[1m"), "note has the character '\\x1b'"),
        (("--note", "x" * 2001), "note has 2001 characters: expected at most 2000."),
    ],
)
@pytest.mark.parametrize("command", ["run", "label"])
def test_labels_that_cannot_be_shown_are_refused(
    run: Run, tmp_path: Path, command: str, options: tuple[str, ...], words: str
) -> None:
    result = run(*((command, "--name", "mine") if command == "run" else (command, "mine")), *options)
    assert result.code == 2 and words in result.err and list(tmp_path.iterdir()) == []


def test_show_and_list_say_what_other_programs_put_into_a_study(run: Run, study: str, tmp_path: Path) -> None:
    assert "Left aside" not in run("show", study).out
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        added = interfere(store.storage, study, 12)
    said = " ".join(run("show", study).out.split())
    assert f"study {study}: finished, 3 trials " in said and f" {added} " in said
    assert [point["number"] for point in run("show", study, "--json").json()["front"]] == [0, 1]
    # The list knows what Optuna knows: every trial that has ended.
    assert run("studies", "--json").json()[0]["trials"] == 3 + added.ended
    assert run("resume", study, "--trials", "2").code == 2


def test_a_configuration_of_a_newer_program_is_refused(run: Run, study: str, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.set_config(study, {**store.studies.get(study).config, "version": 2, "unheard_of": 1})
    result = run("resume", study)
    assert result.code == 2 and "configuration has version 2, and this program reads 1" in result.err


def test_the_number_of_workers_can_be_changed_for_a_search_that_runs(run: Run, study: str, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store, store.runs.lease(study):
        assert run("workers", study, "5").out == "mine: 5 workers\n"
        assert RunConfig.stored(store.studies.get(study).config).workers == 5
    assert run("workers", study, "0").code == 2
    assert run("workers", "nobody", "2").code == 1


BAD: list[tuple[list[str], int, str]] = [
    (["run", "--model", "./nowhere"], 1, "No model at './nowhere'"),
    (["run", "--model", "no-such-user/no-such-model"], 1, "Cannot find the model 'no-such-user/no-such-model'"),
    (["run", "--data", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    (["run", "--data", "empty.jsonl"], 1, "empty.jsonl"),
    (["run", "--data", "bad.jsonl"], 1, "line 2"),
    (["run", "--target-sparsity", "0.96"], 2, "--target-sparsity is 0.96"),
    (["run", "--target-sparsity", "-0.1"], 2, "--target-sparsity is -0.1"),
    (["run", "--cost", "money"], 2, "--cost is 'money': expected one of 'latency_ms', 'flops' or 'kv_bytes'"),
    (["run", "--trials", "0"], 2, "--trials is 0"),
    (["run", "--workers", "0"], 2, "--workers and --gpu-workers are both 0: expected at least one worker."),
    (["run", "--workers", "-1"], 2, "--workers is -1"),
    (["run", "--sampler", "deap,genius"], 2, "'genius'"),
    (["run", "--sampler", ""], 2, "--sampler is ''"),
    (["run", "--sampler", "tpe,optuna.samplers:TPESampler(gamma=len)"], 2, "The arguments of 'optuna.samplers:TPE"),
    (["run", "--sampler", "absent_module:Sampler"], 2, "cannot be loaded: No module named 'absent_module'"),
    (["run", "--rounds", "-1"], 2, "--rounds is -1"),
    (["run", "--min-retention", "1.01"], 2, "--min-retention is 1.01"),
    (["run", "--export", "half"], 2, "--export is 'half': expected one of 'reference', 'full' or 'none'"),
    (["run", "--timed-runs", "1"], 2, "--timed-runs is 1"),
    (["run", "--search-items", "0"], 2, "--search-items is 0"),
    (["run", "--repeats", "0"], 2, "--repeats is 0: expected at least 1"),
    (["run", "--track", "pigeons"], 2, "pigeons"),
    (["run", "--config", "nowhere.yaml"], 2, "nowhere.yaml cannot be read: No such file or directory."),
    (["search", "--config", "bad.yaml"], 2, "bad.yaml, line 2: trails is unknown: did you mean trials?"),
    (["run", "--config", "bad.yaml", "--seed", "-1"], 2, "bad.yaml, line 2"),
    (["config", "nowhere/run.yaml"], 2, "FILE is 'nowhere/run.yaml': expected a file in a folder that exists"),
    (["config", "bad.yaml"], 2, "bad.yaml exists already: choose another name, or replace it with --overwrite."),
    (["sweep", "nowhere.yaml"], 2, "nowhere.yaml cannot be read"),
    (["sweep"], 2, "FILE"),
    (["run", "--fidelities", "0.5,0.25,1"], 2, "--fidelities are 0.5, 0.25, 1, but must be ascending shares"),
    (["run", "--fidelities", "0.5"], 2, "of which the last is 1"),
    (["run", "--fidelities", "half,1"], 2, "--fidelities is 'half,1': expected numbers with commas"),
    (["run", "--fidelities", "0.01,1"], 2, "A search set of 32 items cannot be cut at 0.01, 1"),
    (["run", "--dense-blocks", "first"], 2, "--dense-blocks is 'first': expected whole numbers"),
    (["run", "--latency-length", "0"], 2, "--latency-length is 0: expected a number greater than or equal to 1"),
    (["run", "--latency-length", "long"], 2, "--latency-length is 'long': expected whole numbers with commas"),
    (
        ["run", "--quiet", "--latency-length", "64,1024"],
        2,
        "--latency-length is 1024, but the model reads 512 tokens at most",
    ),
    (["run", "--new-tokens", "-1"], 2, "--new-tokens is -1: expected a number greater than or equal to 0"),
    (["run", "--new-tokens", "some"], 2, "--new-tokens is 'some': expected whole numbers with commas, such as 16,64."),
    (["run", "--quiet", "--new-tokens", "16,500"], 2, "--new-tokens is 500 behind prompts of "),
    (["run", "--pruner", "shears"], 2, "--pruner is 'shears': expected one of 'halving', 'asha'"),
    (["run", "--pruner", "median", "--deterministic"], 2, "--pruner median decides by what has ended so far"),
    (["run", "--min-accuracy", "1.5"], 2, "--min-accuracy is 1.5"),
    (["run", "--max-latency-ms", "0"], 2, "--max-latency-ms is 0"),
    (["run", "--seconds", "-1"], 2, "--seconds is -1"),
    (["run", "--plateau", "0"], 2, "--plateau is 0"),
    (["run", "--trial-timeout", "0"], 2, "--trial-timeout is 0"),
    (["run", "--gpu-share", "1.5"], 2, "--gpu-share is 1.5: expected a share of one GPU, or a whole number of them"),
    (["run", "--device", "tpu"], 2, "--device is 'tpu': expected auto, cpu, cuda"),
    (["run", "--dtype", "int8"], 2, "--dtype is 'int8': expected one of 'auto', 'bfloat16'"),
    (["run", "--warm-start", "nobody"], 1, "There is no study 'nobody'"),
    (["run", "--name", "one", "--warm-start", "one"], 2, "--warm-start is 'one', which is the new study itself"),
    (["run", "--trials", "many"], 2, "--trials"),
    (["run", "--name", " "], 2, "--name"),
    (["run", "--name", ".."], 2, "--name is '..'"),
    (["run", "--name", "a/b"], 2, "without slashes"),
    (["run", "--name", "-x"], 2, "dash"),
    (["run", "--name", "a\tb"], 2, "printable"),
    (["run", "--name", "x" * 201], 2, "expected at most 200 characters"),
    (["run", "--out", "empty.jsonl"], 2, "empty.jsonl is a file"),
    (["run", "--out", "empty.jsonl/deeper"], 2, "empty.jsonl is a file"),
    (["run", "--out", "taken"], 1, "taken/model holds a 'llama' model that is not a pruned one"),
    (["run", "--seed", "-1"], 2, "--seed is -1"),
    (["run", "--seed", "4294967296"], 2, "--seed is 4294967296"),
    (["run", "--data", "~no-such-user/x.jsonl"], 2, "--data is '~no-such-user/x.jsonl'"),
    (["run", "--storage", "postgresql+psycopg://u:secret@host:port/db"], 1, "postgresql+psycopg://"),
    (["run", "--storage", "sqlite:///studies.db?mode=ro"], 1, "studies.db"),
    (["run", "--storage", "sqlite:////no/such/folder/studies.db"], 1, "studies.db"),
    (["run", "--storage", "studies.db"], 1, "sqlite:///"),
    (["run", "--storage", "mongodb://localhost/studies"], 1, "mongodb"),
    (["run", "--no-such-option"], 2, "--no-such-option"),
    (["search", "--trials", "0"], 2, "--trials is 0"),
    (["resume", "nobody"], 1, "ftp-studies.db"),
    (["show", "nobody"], 1, "ftp-studies.db"),
    (["delete", "nobody"], 1, "ftp-studies.db"),
    (["studies"], 1, "ftp-studies.db"),
    (["export", "nobody"], 2, "DIR"),
    (["no-such-command"], 2, "no-such-command"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(arguments) for arguments, _, _ in BAD])
def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "taken/model").mkdir(parents=True)
    (tmp_path / "taken/model/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "bad.yaml").write_text("seed: 1\ntrails: 3\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": " b"}\n{"words": "c"}\n')
    before = sorted(tmp_path.iterdir())
    result = run(*arguments)
    assert result.code == code
    assert words in result.err
    assert result.err.count("\n") == 1 and "Traceback" not in result.err
    assert result.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_study_name_that_exists_is_refused_and_the_study_kept(run: Run, study: str) -> None:
    result = run("run", "--name", study)
    assert result.code == 1 and "'mine'" in result.err and result.err.count("\n") == 1
    assert run("show", study, "--json").json()["trials"] == 3


def test_a_study_that_does_not_exist_is_named_beside_those_that_do(run: Run, study: str) -> None:
    for arguments in (["show", "other"], ["resume", "other"], ["report", "other"], ["export", "other", "somewhere"]):
        result = run(*arguments)
        assert result.code == 1 and "'other'" in result.err and study in result.err


def test_a_resume_below_one_trial_changes_nothing(run: Run, study: str) -> None:
    assert run("resume", study, "--trials", "0").code == 2
    assert run("show", study, "--json").json()["config"]["trials"] == RunConfig().trials


def test_show_prints_one_object_with_the_front(run: Run, study: str) -> None:
    shown = run("show", study, "--json").json()
    assert (shown["name"], shown["state"], shown["trials"]) == ("mine", "finished", 3)
    assert [point["number"] for point in shown["front"]] == [0, 1]
    assert shown["front"][1] == {
        "number": 1,
        "schedule": [0.5] * 12,
        "overall_sparsity": 0.5,
        "values": [0.3, 6.0],
        "round": 0,
        "router": None,
        "proposer": "deap",
        "parents": [],
        "worker": None,
        "measured_latency_ms": None,
    }


def test_show_and_studies_print_tables(run: Run, study: str) -> None:
    assert "Pareto front of mine" in run("show", study).out
    assert "mine" in run("studies").out
    listed = run("studies", "--json").json()
    assert [(row["name"], row["trials"], row["state"]) for row in listed] == [("mine", 3, "finished")]


def test_a_search_without_measurements_can_be_reported_and_exported(run: Run, study: str, tmp_path: Path) -> None:
    assert run("report", study).code == 0
    assert (tmp_path / "ftp-out/mine/report.html").stat().st_size > 1_000_000
    assert run("export", study, "pruned").code == 0
    exported = json.loads((tmp_path / "pruned/schedule.json").read_text())
    assert exported["schedule"] == [0.5] * 12 and exported["router"] is None
    assert exported["objectives"] == {"kl": 0.3, "latency_ms": 6.0}
    whole = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    assert run("export", study, "light", "--reference").code == 0
    light = FTPForCausalLM.from_pretrained(tmp_path / "light")
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert torch.equal(light(ids).logits, whole(ids).logits)
    assert (tmp_path / "pruned/model.safetensors").stat().st_size > 1_000_000
    assert not (tmp_path / "light/model.safetensors").exists()
    assert json.loads((tmp_path / "pruned/config.json").read_text())["base_config"]["num_hidden_layers"] == 12
    # Any other trial goes to where it is told to.
    assert run("export", study, "pruned", "--trial", "2", "--reference").code == 0
    other = json.loads((tmp_path / "pruned/schedule.json").read_text())
    assert (other["trial"], other["schedule"]) == (2, [0.2] * 12)
    missing = run("export", study, "pruned", "--trial", "7")
    assert missing.code == 1 and "has no trial 7" in missing.err
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.trials.append(study, replace(store.trials.get(study, 0), number=3, values=None, state=TrialState.FAILED))
    failed = run("export", study, "pruned", "--trial", "3")
    assert failed.code == 1 and "Trial 3 of 'mine' has no finite figures" in failed.err
    assert json.loads((tmp_path / "pruned/schedule.json").read_text()) == other


def test_an_export_does_not_touch_a_model_that_is_not_pruned(run: Run, study: str, tmp_path: Path) -> None:
    demo = load_model("demo")
    demo.skipping.model.save_pretrained(tmp_path / "dense")
    demo.tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "link").symlink_to(tmp_path / "dense", target_is_directory=True)
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.set_config(study, {**store.studies.get(study).config, "model": str(tmp_path / "dense")})
    before = {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()}
    for place in ("dense", "link", "./link/../dense"):
        for options in ((), ("--reference",)):
            refused = run("export", study, place, *options)
            assert refused.code == 1 and "which would be overwritten: name another directory" in refused.err
    (tmp_path / "model").symlink_to(tmp_path / "dense", target_is_directory=True)
    refused = run("resume", study, "--out", ".")
    assert refused.code == 1 and "would be overwritten" in refused.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir()} == before
    assert run("export", study, "pruned", "--reference").code == 0
    assert run("export", study, "pruned").code == 0
    assert FTPForCausalLM.from_pretrained(tmp_path / "pruned").config.base_model is None


def test_the_report_goes_where_the_study_says(run: Run, study: str, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.set_config(study, {**store.studies.get(study).config, "out": str(tmp_path / "kept")})
    assert str(tmp_path / "kept/report.html") in run("report", study).out
    assert run("report", study, "--out", "elsewhere").code == 0
    for folder in ("kept", "elsewhere"):
        assert (tmp_path / folder / "report.html").is_file()


def test_delete_removes_the_study(run: Run, study: str) -> None:
    assert run("delete", study).code == 0
    assert run("studies", "--json").json() == []
    assert run("show", study).code == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0 and f"Example: ftp-search {command}" in result.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["run", "--data", "nowhere.jsonl", "--debug"], 1), (["--debug", "run", "--trials", "0"], 2)],
)
def test_debug_shows_the_traceback_and_keeps_the_exit_code(run: Run, arguments: list[str], code: int) -> None:
    result = run(*arguments)
    assert result.code == code
    assert "Traceback" in result.err


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    result = run()
    assert result.code == 2
    assert all(command in result.out for command in COMMANDS)


def test_a_resume_below_what_is_done_changes_nothing(run: Run, study: str) -> None:
    result = run("resume", study, "--trials", "2")
    assert result.code == 2 and "has 3 trials" in result.err
    assert run("show", study, "--json").json()["config"]["trials"] == RunConfig().trials


def test_a_router_for_a_schedule_that_skips_nothing_is_refused(run: Run, study: str, tmp_path: Path) -> None:
    result = run("distill", study, "--target-sparsity", "0")
    assert result.code == 1 and "skips nothing" in result.err
    shown = run("show", study, "--json").json()
    assert (shown["state"], shown["chosen_trial"]) == ("finished", 1)


def test_a_router_at_a_sparsity_that_the_front_does_not_have_is_refused(run: Run, study: str) -> None:
    result = run("distill", study, "--target-sparsity", "0.4")
    assert result.code == 2 and "are 0 and 0.5" in result.err
    result = run("distill", study, "--target-speedup", "2")
    assert result.code == 2 and "give --target-flops-saved" in result.err
    assert run("show", study, "--json").json()["chosen_trial"] == 1


def test_show_says_what_a_study_left_out_and_why_it_ended(run: Run, study: str, tmp_path: Path) -> None:
    said = {"rounds_ended": "Rounds ended in round 1: the router is no better.", "fewer_items": "Fewer items: test 6."}
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        ablations = Ablations(0, 12, 3, 20, left_out="3 trials are too few to ablate each block.")
        store.studies.update_facts(study, StudyFacts(**said, ablations=ablations))
    shown = run("show", study)
    for line in (*said.values(), "3 trials are too few to ablate each block."):
        assert shown.out.count(line) == 1
    assert run("show", study, "--json").json()["rounds_ended"] == said["rounds_ended"]


def test_markup_in_a_name_is_shown_as_it_is(run: Run, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("[red]mine[/]", RunConfig(workers=1).model_dump(), OBJECTIVES)
    assert "[red]mine[/]" in run("studies").out
    assert "study [red]mine[/]: created" in run("show", "[red]mine[/]").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dense-blocks", "0,12"], "Dense block 12 is none of the model's 12: expected -12 to 11"),
        (["--dense-blocks", "0,1,2,3,4,5", "--target-sparsity", "0.6"], "A target sparsity of 0.6 cannot be reached"),
        (["--sampler", "grid", "--model", "deep"], "grid"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_search_that_the_model_rules_out_is_refused_before_there_is_a_study(
    run: Run, tmp_path: Path, options: list[str], words: str
) -> None:
    if "deep" in options:
        config = LlamaConfig(
            **{"vocab_size": 512, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1},
            num_hidden_layers=20,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / "deep")
        load_model("demo").tokenizer.save_pretrained(tmp_path / "deep")
    result = run("search", *options)
    assert result.code == 2 and words in result.err.splitlines()[-1]
    assert "Traceback" not in result.err and not (tmp_path / "ftp-studies.db").exists()


def test_a_configuration_file_is_written_to_be_read(run: Run, tmp_path: Path) -> None:
    shown = run("config")
    assert shown.code == 0 and "\ntarget_sparsity: null\n" in shown.out
    assert run("config", "run.yaml").out == "wrote run.yaml\n"
    assert (tmp_path / "run.yaml").read_text() == shown.out
    (tmp_path / "run.yaml").write_text("mine\n")
    assert run("config", "run.yaml").code == 2
    assert (tmp_path / "run.yaml").read_text() == "mine\n"
    assert run("config", "run.yaml", "--overwrite").code == 0
    assert (tmp_path / "run.yaml").read_text() == shown.out


def test_help_says_of_each_setting_what_the_class_says(run: Run) -> None:
    words = " ".join(run("run", "--help").out.split())
    for field in OF_NEW_STUDIES:
        # Lines are broken at dashes, too.
        assert SETTINGS[field].description.replace("- ", "-") in words.replace("- ", "-")
        assert option(field) in words
    assert "[default: 300]" in words and "[default: portfolio]" in words and "[default: True]" not in words


def test_only_options_that_are_given_override_the_file(run: Run, tmp_path: Path) -> None:
    """What is wrong is what counts: the default of an option never hides what the file says."""
    (tmp_path / "run.yaml").write_text("trials: 0\nseed: 3\n")
    assert "run.yaml, line 1: trials is 0" in run("run", "--config", "run.yaml").err
    # The default, given all the same.
    assert "--seed is -1" in run("run", "--config", "run.yaml", "--trials", "300", "--seed", "-1").err
    (tmp_path / "run.yaml").write_text("deterministic: true\npruner: median\nmodel: ./nowhere\n")
    assert "--pruner median decides" in run("run", "--config", "run.yaml").err
    result = run("run", "--config", "run.yaml", "--no-deterministic")
    assert result.code == 1 and f"No model at '{tmp_path / 'nowhere'}'" in result.err

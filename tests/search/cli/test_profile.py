"""Blocks are profiled once on a machine; profiles of other machines are refused, or said to be such."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.profile import LatencyProfile
from ftp_core.loading.models import load_model
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from search.config.run_config import RunConfig
from search.inputs.data import Workload, load_workload
from search.problem.objectives import OBJECTIVES
from studies import StudyStore
from studies.records.study_facts import StudyFacts, TimedInput
from tests.search.command import Result, run_here
from tests.search.made_up_profiles import made_up

Run = Callable[..., Result]
SMALL: dict[str, Any] = {
    "calibration_items": 4,
    "validation_items": 2,
    "test_items": 4,
    "search_items": 4,
}
TINY = ("--model", "tiny", "--length", "8", "--threads", "1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload("demo", "demo", 0, RunConfig.checked(**SMALL).sizes)


@pytest.fixture
def tiny(tmp_path: Path) -> None:
    """A model of two blocks in the folder `tiny`, whose passes take no time worth mentioning."""
    config = LlamaConfig(vocab_size=512, hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    load_model("demo").tokenizer.save_pretrained(tmp_path / "tiny")


def stored(tmp_path: Path) -> int:
    with closing(sqlite3.connect(tmp_path / "ftp-studies.db")) as raw:
        return int(raw.execute("SELECT count(*) FROM latency_profile").fetchone()[0])


def test_help_has_an_example(run: Run) -> None:
    result = run("profile", "--help")
    assert result.code == 0 and "Example: ftp-search profile --model ./my-llama" in result.out


BAD: list[tuple[list[str], int, str]] = [
    (["--batch", "0"], 2, "--batch is '0': expected whole numbers from 1 on"),
    (["--batch", "1,x"], 2, "--batch is '1,x': expected whole numbers from 1 on"),
    (["--length", ""], 2, "--length is ''"),
    (["--length", "64,1024"], 2, "--length is 1024, but the model 'demo' reads 512 tokens at once"),
    (["--dtype", "int8"], 2, "--dtype is 'int8': expected one of 'auto', 'bfloat16', 'float16' or 'float32'"),
    (["--device", "abacus"], 2, "--device is 'abacus': expected auto, cpu, cuda, cuda:N such as cuda:1, or mps"),
    (["--threads", "0"], 2, "--threads is 0: expected at least 1"),
    (["--profile-seconds", "0"], 2, "--profile-seconds is 0: expected a number above 0"),
    (["--profile-seconds", "nan"], 2, "--profile-seconds is nan: expected a number above 0"),
    (["--model", "./nowhere"], 1, "No model at './nowhere'"),
    (
        ["--revision", "v1"],
        1,
        "The revision 'v1' is of models on the Hugging Face Hub, but 'demo' lies on this machine",
    ),
    (["--adapter", "./nowhere"], 1, "No adapter at './nowhere': expected a directory with adapter_config.json"),
    (["--device-map", "spread"], 2, "--device-map is 'spread': expected one of 'auto'"),
    (["--storage", "mongodb://localhost/x"], 1, "mongodb"),
    # It printed to a file once.
    (["--json", "x.json"], 2, "x.json"),
    (["--from", "nowhere.json"], 2, "--from is 'nowhere.json', which cannot be read as JSON"),
    (["--from", "bad.json"], 2, "--from is 'bad.json', which cannot be read as JSON"),
    (["--from", "list.json"], 2, "--from is 'list.json', which is no latency profile"),
    (["--from", "other.json"], 1, "This is no latency profile"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(arguments) for arguments, _, _ in BAD])
def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    result = run("profile", *arguments)
    assert result.code == code and words in result.err.splitlines()[-1]
    assert "Traceback" not in result.err and result.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("tiny")
def test_what_was_measured_is_kept_and_used_again(run: Run, tmp_path: Path) -> None:
    first = run("profile", *TINY, "--batch", "1")
    assert first.code == 0, first.err
    assert "Profiling latency, 60 s at most ..." in first.err
    said = r"^Latency of 1 x 8 tokens is predicted to within [\d.]+% \(95 % interval, measured for \d+ s\)\.$"
    assert re.search(said, first.err, re.MULTILINE)
    assert "1 x 8 tokens, mean of 2 blocks" in first.out and "speed-up" in first.out
    assert "a decoded token" in first.out and "predictions for other schedules were off by" in first.out
    assert "with 95 % confidence by no more than" in first.out
    assert stored(tmp_path) == 1
    kept = run("profile", *TINY, "--batch", "1", "--json").json()
    profile = LatencyProfile.from_json(kept)
    assert (profile.batch, profile.length, len(profile.blocks)) == (1, 8, 2)
    assert profile.shapes[0].kept == (2, 3, 4, 5, 6, 7, 8)

    again = run("profile", *TINY, "--batch", "1")
    assert again.code == 0 and "Profiling" not in again.err
    assert f"already measured on {profile.shapes[0].measured_at}" in again.out

    # Only what is missing is measured; in another precision, nothing is known.
    more = run("profile", *TINY, "--batch", "2,1")
    assert more.code == 0 and "1 x 8" in more.out and "2 x 8" in more.out
    assert more.out.count("already measured") == 1 and stored(tmp_path) == 2
    both = LatencyProfile.from_json(run("profile", *TINY, "--batch", "2,1", "--json").json())
    assert both.parts()[0] == profile
    other = run("profile", *TINY, "--batch", "1", "--dtype", "bfloat16")
    assert other.code == 0 and "already" not in other.out and "bfloat16" in other.out and stored(tmp_path) == 3

    anew = run("profile", *TINY, "--batch", "1", "--remeasure", "--json")
    assert anew.code == 0 and stored(tmp_path) == 3 and anew.json() != kept
    assert run("profile", *TINY, "--batch", "1", "--json").out == anew.out


def test_a_profile_from_elsewhere_is_refused_with_what_differs(run: Run, workload: Workload, tmp_path: Path) -> None:
    here = made_up(workload, [(1, 64), (8, 64)])
    assert here.conditions is not None
    there = replace(here, conditions=replace(here.conditions, cpu="another processor", threads=64))
    (tmp_path / "there.json").write_text(json.dumps(there.to_json()))
    refused = run("profile", "--dtype", "float32", "--from", "there.json")
    assert refused.code == 1 and "cpu 'another processor', here " in refused.err and "threads 64, here 1" in refused.err
    assert not (tmp_path / "ftp-studies.db").exists()
    (tmp_path / "here.json").write_text(json.dumps(here.to_json()))
    taken = run("profile", "--dtype", "float32", "--from", "here.json")
    assert taken.code == 0 and "8 x 64 tokens" in taken.out and stored(tmp_path) == 2
    found = run("profile", "--dtype", "float32", "--batch", "1,8", "--length", "64")
    assert found.code == 0 and found.out.count("already measured on 2026-01-01T00:00:00+00:00") == 2


@pytest.mark.usefixtures("tiny")
def test_the_advised_command_measures_that_model_and_those_shapes_again(run: Run, tmp_path: Path) -> None:
    first = run("profile", *TINY, "--batch", "1,2", "--json", "--storage", "sqlite:///own.db")
    assert first.code == 0, first.err
    doubtful = first.json()
    for shape in doubtful["shapes"]:
        shape |= {"waited": 0.97, "uncertainty": 2.39, "measured_at": "2020-01-01T00:00:00+00:00"}
    (tmp_path / "busy.json").write_text(json.dumps(doubtful))
    given = run("profile", "--model", "tiny", "--threads", "1", "--from", "busy.json", "--storage", "sqlite:///own.db")
    assert given.code == 0, given.err
    [line] = [line for line in given.err.splitlines() if "relied on" in line]
    assert "waited for a core during 97% of the time at 1 x 8 tokens (and less at 1 other shape)" in line
    words = shlex.split(line.partition("`")[2].partition("`")[0])
    assert words[:4] == ["ftp-search", "profile", "--model", "tiny"]
    again = run(*words[1:], "--json")
    assert again.code == 0, again.err
    shapes = again.json()["shapes"]
    assert [(one["batch"], one["length"]) for one in shapes] == [(1, 8), (2, 8)]
    assert all(one["measured_at"] > "2020-01-02" for one in shapes)
    # In the place of what was there.
    assert run(*(word for word in words[1:] if word != "--remeasure"), "--json").out == again.out


@pytest.mark.usefixtures("tiny")
def test_a_model_with_an_adapter_that_is_spread_is_profiled_and_advised_so(run: Run, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tmp_path / "tiny")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    given = ("--adapter", "adapter", "--device-map", "auto", "--profile-seconds", "0.5")
    first = run("profile", *TINY, *given, "--batch", "1", "--json")
    assert first.code == 0, first.err
    assert "Loading tiny (adapter adapter)" in first.err
    doubtful = first.json()
    for shape in doubtful["shapes"]:
        shape |= {"waited": 0.97}
    (tmp_path / "busy.json").write_text(json.dumps(doubtful))
    busy = run("profile", *TINY[:2], *TINY[4:], *given[:4], "--from", "busy.json")
    assert busy.code == 0, busy.err
    [line] = [line for line in busy.err.splitlines() if "relied on" in line]
    words = shlex.split(line.partition("`")[2].partition("`")[0])
    assert words[:6] == ["ftp-search", "profile", "--model", "tiny", "--adapter", "adapter"]
    assert words[words.index("--device-map") + 1] == "auto"


@pytest.mark.usefixtures("tiny")
def test_a_study_s_model_is_spread_as_its_settings_say(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        config = RunConfig.checked(model=str(tmp_path / "tiny"), device_map="auto")
        store.studies.create("mine", config.model_dump(), OBJECTIVES)
        store.studies.update_facts("mine", StudyFacts(timed_input=TimedInput(1, 8)))
    # Without the package that spreads models, one that is spread is refused.
    monkeypatch.setattr("ftp_core.loading.models.find_spec", lambda _: None)
    refused = run("profile", "--study", "mine")
    assert refused.code == 1 and "device_map needs the package accelerate" in refused.err


@pytest.mark.usefixtures("tiny")
def test_a_study_is_profiled_with_what_stands_in_for_skipped_halves(run: Run, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        halves = {"profile_seconds": 0.5, "target_flops_saved": 0.2, "substitute": 4}
        store.studies.create(
            "halves", RunConfig.checked(model=str(tmp_path / "tiny"), **halves).model_dump(), OBJECTIVES
        )
        store.studies.update_facts("halves", StudyFacts(timed_input=TimedInput(3, 16)))
        done = run("profile", "--study", "halves")
        assert done.code == 0, done.err
        model = load_model(str(tmp_path / "tiny")).skipping
        assert store.profiles.get(profile_conditions(model).fingerprint(3, 16)) is None
        maps = Substitutes(model.n_blocks, model.model.config.hidden_size, 4)
        give_substitutes(model.model, maps, model.blocks)
        assert store.profiles.get(profile_conditions(model).fingerprint(3, 16)) is not None


@pytest.mark.usefixtures("tiny")
def test_a_study_is_profiled_with_its_model_and_input(run: Run, tmp_path: Path) -> None:
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        config = RunConfig.checked(model=str(tmp_path / "tiny"), profile_seconds=0.5)
        store.studies.create("mine", config.model_dump(), OBJECTIVES)
        early = run("profile", "--study", "mine")
        assert early.code == 2 and "--study is 'mine', which has not begun" in early.err
        store.studies.update_facts("mine", StudyFacts(timed_input=TimedInput(3, 16)))
        options = (
            ["--batch", "1"],
            ["--model", "demo"],
            ["--revision", "v1"],
            ["--adapter", "adapter"],
            ["--device-map", "auto"],
            ["--from", "x.json"],
            ["--dtype", "bfloat16"],
        )
        for option in options:
            both = run("profile", "--study", "mine", *option)
            assert both.code == 2 and f"--study and {option[0]} are both given" in both.err
        done = run("profile", "--study", "mine", "--remeasure")
        assert done.code == 0, done.err
        assert "3 x 16 tokens, mean of 2 blocks" in done.out and "Profiling latency, 0.5 s at most" in done.err
        assert "study 'mine' keeps the profile that it has until: ftp-search resume mine --remeasure" in done.out
        # It is the one that a study of this model and input finds.
        model = load_model(str(tmp_path / "tiny")).skipping
        assert store.profiles.get(profile_conditions(model).fingerprint(3, 16)) is not None
        assert run("profile", "--study", "none").code == 1

"""Blocks are profiled once on a machine; profiles of other machines are refused, or said to be such."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from ftp_core.cost.conditions import profile_conditions
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.profiling import block_kinds
from ftp_core.cost.shape_profile import ShapeProfile
from ftp_core.models import load_model
from ftp_core.skipping_model import SkippingModel
from search.config import RunConfig
from search.errors import SearchError
from search.measuring import latency_profile
from search.objectives import OBJECTIVES
from search.open_study import OpenStudy
from search.profiles import keep_profile, profile_of
from search.progress import ProgressView
from search.workload import Workload, load_workload
from studies import StudyStore
from tests.search.command import Result, run_here

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


def made_up(workload: Workload, shapes: list[tuple[int, int]], **facts: Any) -> LatencyProfile:
    """A profile of this machine that nobody measured."""
    model = workload.model.skipping
    blocks, kinds = block_kinds(model)
    parts = []
    for batch, length in shapes:
        kept = (1, length - 1, length)
        times = ((0.1, 1.0, 0.9),) * len(kinds)
        parts.append(
            ShapeProfile(
                batch,
                length,
                kept,
                times,
                fixed_ms=2.0,
                iqr_ms=times,
                listen_ms=times,
                held=kept,
                decode_block_ms=times,
                measured_at="2026-01-01T00:00:00+00:00",
                **facts,
            )
        )
    return LatencyProfile(tuple(parts), blocks, kinds, profile_conditions(model))


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
    (["--dtype", "int8"], 2, "--dtype is 'int8': expected one of float32, bfloat16, float16"),
    (["--device", "abacus"], 2, "--device is 'abacus': expected one of cpu, cuda"),
    (["--threads", "0"], 2, "--threads is 0: expected at least 1"),
    (["--profile-seconds", "0"], 2, "--profile-seconds is 0: expected a number above 0"),
    (["--profile-seconds", "nan"], 2, "--profile-seconds is nan: expected a number above 0"),
    (["--model", "./nowhere"], 1, "No model at './nowhere'"),
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
    assert profile.shapes[0].kept == (1, 2, 3, 4, 5, 6, 7, 8)

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
    refused = run("profile", "--from", "there.json")
    assert refused.code == 1 and "cpu 'another processor', here " in refused.err and "threads 64, here 1" in refused.err
    assert not (tmp_path / "ftp-studies.db").exists()
    (tmp_path / "here.json").write_text(json.dumps(here.to_json()))
    taken = run("profile", "--from", "here.json")
    assert taken.code == 0 and "8 x 64 tokens" in taken.out and stored(tmp_path) == 2
    found = run("profile", "--batch", "1,8", "--length", "64")
    assert found.code == 0 and found.out.count("already measured on 2026-01-01T00:00:00+00:00") == 2


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def study(workload: Workload, shown: io.StringIO) -> Iterator[OpenStudy]:
    config = RunConfig.checked(**SMALL)
    view = ProgressView(Console(file=shown, width=400))
    with StudyStore("sqlite://") as store:
        store.create_study("one", config.model_dump(), OBJECTIVES)
        with store.lease("one") as lease:
            yield OpenStudy(store, "one", lease, config, workload, view)


def test_a_study_takes_the_profile_that_is_known_and_keeps_it(study: OpenStudy, shown: io.StringIO) -> None:
    shapes = [(study.config.latency_batch, length) for length in range(32, 513, 32)]
    here = made_up(study.workload, shapes)
    keep_profile(study.store, here, replace=False)
    profile = latency_profile(study)
    assert len(profile.shapes) == 1 and profile.batch == study.config.latency_batch and profile.length % 32 == 0
    # Another one that is measured later changes nothing for it.
    slower = LatencyProfile(tuple(replace(shape, fixed_ms=9.0) for shape in here.shapes), *_rest(here))
    keep_profile(study.store, slower, replace=True)
    assert latency_profile(study) == profile
    view = ProgressView(Console(file=shown, width=400))
    known = profile_of(study.store, study.workload.model.skipping, shapes[:1], view)
    assert known.profile.shapes[0].fixed_ms == 9.0 and known.known == ((*shapes[0], here.shapes[0].measured_at),)
    assert shown.getvalue() == ""


def _rest(profile: LatencyProfile) -> tuple[Any, ...]:
    return profile.blocks, profile.kinds, profile.conditions


def test_what_is_done_is_kept_when_there_is_no_memory_for_the_next(
    study: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(model: SkippingModel, shapes: list[tuple[int, int]], *_: object, **__: object) -> LatencyProfile:
        if shapes == [(1, 64)]:
            raise torch.OutOfMemoryError
        return made_up(study.workload, shapes)

    # The memory of a machine cannot be taken away for a test.
    monkeypatch.setattr("search.profiles.profile_latency", measured)
    model = study.workload.model.skipping
    with pytest.raises(SearchError, match="not enough memory for 1 x 64 tokens"):
        profile_of(study.store, model, [(1, 32), (1, 64)], study.view)
    assert study.store.latency_profile(profile_conditions(model).fingerprint(1, 32)) is not None


def test_an_earlier_profile_stays_unless_it_shall_be_replaced(study: OpenStudy) -> None:
    here = made_up(study.workload, [(1, 64)])
    later = LatencyProfile((replace(here.shapes[0], fixed_ms=9.0),), *_rest(here))
    assert keep_profile(study.store, here, replace=False) == [here]
    assert keep_profile(study.store, later, replace=False) == [here]
    assert keep_profile(study.store, later, replace=True) == [later]
    assert keep_profile(study.store, here, replace=False) == [later]


def test_a_resumed_study_says_in_one_line_that_its_predictions_come_from_elsewhere(
    study: OpenStudy, shown: io.StringIO
) -> None:
    here = made_up(study.workload, [(8, 64)])
    assert here.conditions is not None
    there = replace(here, conditions=replace(here.conditions, cpu="another processor"))
    study.store.set_facts(study.name, {"latency_profile": there.to_json()})
    assert latency_profile(study) == there
    [line] = shown.getvalue().splitlines()
    assert "Latency is predicted for where this study began" in line and "cpu 'another processor', here " in line


def test_a_study_of_an_earlier_version_goes_on_with_its_profile(study: OpenStudy, shown: io.StringIO) -> None:
    old = {"batch": 8, "length": 64, "threads": 2, "kept": [4, 63, 64], "block_ms": [0.1, 1.0, 0.9], "fixed_ms": 1.0}
    study.store.set_facts(study.name, {"latency_profile": old})
    assert latency_profile(study) == LatencyProfile.from_json(old)
    assert "measured by an earlier version, which did not keep where" in shown.getvalue()


def test_a_study_says_that_its_profile_is_not_to_be_relied_on(study: OpenStudy, shown: io.StringIO) -> None:
    shapes = [(study.config.latency_batch, length) for length in range(32, 513, 32)]
    keep_profile(study.store, made_up(study.workload, shapes, check_error=0.5), replace=False)
    latency_profile(study)
    [line] = shown.getvalue().splitlines()
    assert line.startswith("The machine was busy when latency was profiled: predictions at 8 x ")
    assert "off by 50%" in line and "--remeasure" in line

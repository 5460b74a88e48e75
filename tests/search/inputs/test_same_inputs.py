"""Model and data may lie elsewhere when a study goes on, but must be the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ftp_core import FTPForCausalLM
from ftp_core.loading.models import load_model, load_published
from ftp_core.loading.reference import ModelReference
from search.config.run_config import RunConfig
from search.inputs.data import load_workload
from search.problem.objectives import OBJECTIVES
from studies import StudyState, StudyStore
from studies.records.study_facts import StudyFacts
from tests.search.command import Result, run_here
from tests.studies.records import trial

Run = Callable[..., Result]
SIZES = {"calibration_items": 4, "search_items": 4, "validation_items": 2, "test_items": 4}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    """A study of a model and data in the folder `old` whose search has ended, with another model beside it."""
    demo = load_model("demo")
    for folder in ("old", "wrong"):
        demo.skipping.model.save_pretrained(tmp_path / folder)
        demo.tokenizer.save_pretrained(tmp_path / folder)
        with torch.no_grad():
            demo.skipping.model.lm_head.weight[0, 0] += 1.0
    for name, answer in (("old/data.jsonl", " yes"), ("wrong/data.jsonl", " no")):
        lines = [json.dumps({"prompt": f"Is {n} a number?", "completion": answer}) for n in range(40)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    config = RunConfig(
        **{"model": str(tmp_path / "old"), "data": str(tmp_path / "old/data.jsonl"), "cost": "flops"},
        **{"workers": 1, "trials": 2, "rounds": 0, "export": "none", "latency_batch": 1, **SIZES},
    )
    workload = load_workload(config.model, config.data, config.seed, config.sizes)
    store = StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}")
    store.studies.create("mine", config.model_dump(), OBJECTIVES)
    fingerprints = {"model_fingerprint": workload.model.fingerprint(), "data_fingerprint": workload.data_fingerprint}
    store.studies.update_facts("mine", StudyFacts(**fingerprints))
    for number in range(2):
        store.trials.append("mine", trial(number, (float(number), 10.0 - number), (number / 4,) * 12))
    store.studies.choose_trial("mine", 1)
    for stage in ("search", "measure", "select", "test", "export"):
        store.runs.begin_stage("mine", stage)
        store.runs.end_stage("mine", stage, StudyState.FINISHED)
    shutil.move(tmp_path / "old", tmp_path / "new")
    return store


def places(store: StudyStore) -> tuple[str, str]:
    config = store.studies.get("mine").config
    return str(config["model"]), str(config["data"])


@pytest.mark.parametrize("command", [("resume", "mine"), ("distill", "mine"), ("export", "mine", "pruned")])
def test_what_is_not_where_it_was_is_asked_for(run: Run, store: StudyStore, command: tuple[str, ...]) -> None:
    result = run(*command)
    assert result.code == 1 and result.err.count("\n") == 1
    assert "The model of study 'mine' was at" in result.err and "say with --model where it is" in result.err


@pytest.mark.parametrize("command", ["resume", "distill"])
def test_another_model_or_other_data_is_refused_and_not_remembered(
    run: Run, store: StudyStore, tmp_path: Path, command: str
) -> None:
    before = places(store)
    for model, data, word in (("wrong", "new/data.jsonl", "model"), ("new", "wrong/data.jsonl", "data")):
        result = run(command, "mine", "--model", f"./{model}", "--data", data, "--quiet")
        assert result.code == 1 and f"The {word} changed since study 'mine' began, or is another one" in result.err
        assert f"say with --{word} where the right one is" in " ".join(result.err.split())
    missing = run(command, "mine", "--model", "./nowhere", "--data", "new/data.jsonl")
    assert (missing.code == 1 and "No model at './nowhere'" in missing.err) or "nowhere'" in missing.err
    assert places(store) == before


def test_a_study_goes_on_where_its_model_and_data_lie_now(run: Run, store: StudyStore, tmp_path: Path) -> None:
    result = run("resume", "mine", "--model", "./new", "--data", "new/data.jsonl", "--quiet")
    assert result.code == 0, result.err
    assert places(store) == (str(tmp_path / "new"), str(tmp_path / "new/data.jsonl"))
    # It is remembered.
    assert run("resume", "mine", "--quiet").code == 0


def test_an_export_prunes_the_study_s_own_model(run: Run, store: StudyStore, tmp_path: Path) -> None:
    refused = run("export", "mine", "pruned", "--model", "./wrong")
    assert refused.code == 1 and "The model changed since study 'mine' began, or is another one" in refused.err
    assert not (tmp_path / "pruned").exists() and places(store)[0] == str(tmp_path / "old")
    assert run("export", "mine", "pruned", "--model", "./new", "--reference").code == 0
    assert places(store)[0] == str(tmp_path / "new")
    assert json.loads((tmp_path / "pruned/config.json").read_text())["base_model"] == str(tmp_path / "new")
    FTPForCausalLM.from_pretrained(tmp_path / "pruned")


def test_an_export_is_told_where_an_adapter_lies_now(run: Run, store: StudyStore, tmp_path: Path) -> None:
    torch.manual_seed(1)
    dense, _ = load_published(tmp_path / "new")
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(dense, settings).save_pretrained(tmp_path / "moved")
    adapted = load_model(ModelReference(tmp_path / "new", adapter=str(tmp_path / "moved")))
    config = RunConfig.stored(
        store.studies.get("mine").config, model=str(tmp_path / "new"), adapter=str(tmp_path / "gone")
    )
    store.studies.set_config("mine", config.model_dump())
    store.studies.update_facts("mine", StudyFacts(model_fingerprint=adapted.fingerprint()))
    lost = run("export", "mine", "pruned", "--reference")
    assert lost.code == 1 and "The adapter of study 'mine' was at" in lost.err and "say with --adapter" in lost.err
    nowhere = run("export", "mine", "pruned", "--adapter", "nowhere")
    assert nowhere.code == 1 and f"No adapter at '{tmp_path / 'nowhere'}'" in nowhere.err
    done = run("export", "mine", "pruned", "--adapter", "moved")
    assert done.code == 0, done.err
    # It is remembered.
    assert store.studies.get("mine").config["adapter"] == str(tmp_path / "moved")
    merged = FTPForCausalLM.from_pretrained(tmp_path / "pruned").base.state_dict()
    for name, weight in adapted.skipping.model.state_dict().items():
        torch.testing.assert_close(merged[name].float(), weight.float())


def test_a_model_of_the_hub_that_is_on_this_machine_now_has_no_revision_any_longer(
    run: Run, store: StudyStore, tmp_path: Path
) -> None:
    config = RunConfig.stored(store.studies.get("mine").config, model="someone/tiny", revision="v1")
    store.studies.set_config("mine", config.model_dump())
    refused = run("export", "mine", "pruned", "--model", "new", "--revision", "v2")
    assert refused.code == 1 and "The revision 'v2' is of models on the Hugging Face Hub" in refused.err
    done = run("export", "mine", "pruned", "--model", "new")
    assert done.code == 0, done.err
    known = store.studies.get("mine").config
    assert (known["model"], known["revision"]) == (str(tmp_path / "new"), None)

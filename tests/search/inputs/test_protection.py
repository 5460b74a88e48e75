"""A study protects the beginning of prompts, says where it does not, and never mixes figures of both."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftp_core import FTPForCausalLM
from ftp_core.demo import assets
from ftp_core.demo.examples import demo_examples
from ftp_core.errors import DataError
from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.text.encoding import EncodedExample
from search.cli.show import describe_study
from search.config.run_config import RunConfig
from search.errors import ConfigError, SearchError
from search.evaluators import Task
from search.evaluators.local import LocalEvaluator, ModelSetup
from search.inputs.data import load_workload
from search.inputs.protection import n_protected_tokens, unprotected_beginning
from search.pipeline.create import beginning
from search.pipeline.pipeline import Pipeline
from search.pipeline.preflight import check_search
from search.problem.objectives import OBJECTIVES, evaluation_context
from search.progress.progress_view import ProgressView
from search.reports import write_reports
from search.stages.export import export_study
from search.stages.measure import Variant, _qualities
from search.stages.open_study import OpenStudy
from studies import StudyStore
from studies.records.study_facts import StudyFacts
from tests.search.command import evaluate_here, run_here
from tests.studies.records import running, trial

SMALL = {
    **{"calibration_items": 6, "validation_items": 4, "test_items": 4, "search_items": 4, "workers": 1},
    "dtype": "float32",
}
SIZES = RunConfig(**SMALL).sizes  # type: ignore[arg-type]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
)
SYSTEM = "Answer the question that was asked, and say no more than that."
HALF = SparsitySchedule.uniform(0.5, 12)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(assets(), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(chat_model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(chat_model)
    return loaded


def chats(tokenizer: PreTrainedTokenizerBase, systems: Sequence[str | None]) -> list[str]:
    """A chat for each of some system prompts."""
    texts = []
    for system, example in zip(systems, demo_examples("test", len(systems), 0), strict=True):
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": example.prompt})
        texts.append(str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)))
    return texts


def written(path: Path, prompts: Sequence[str]) -> str:
    rows = [{"prompt": prompt, "completion": f"red {number}"} for number, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_system_turn_is_as_many_tokens_as_all_prompts_begin_with(
    chat_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = written(tmp_path / "chats.jsonl", chats(tokenizer, [SYSTEM] * 20))
    workload = load_workload(str(chat_model), data, 0, SIZES, "system")
    n_tokens = workload.model.skipping.keep_first
    prompts = [example.prompt for split in workload.splits.values() for example in split]
    [beginning] = {tokenizer.decode(list(prompt[:n_tokens])) for prompt in prompts}
    assert beginning == tokenizer.decode(tokenizer(f"system\n{SYSTEM}</s>\nuser\n")["input_ids"])
    assert workload.unprotected_beginning is None
    # The model and its data are the same whatever is protected.
    without = load_workload(str(chat_model), data, 0, SIZES)
    assert without.data_fingerprint == workload.data_fingerprint and without.splits == workload.splits
    warning = without.unprotected_beginning
    assert warning is not None and "14 of 14 prompts begin with the same" in warning
    assert (
        "a system turn" in warning and "--keep-first system protects it; what follows it skips in its place." in warning
    )


@pytest.mark.parametrize(
    ("systems", "says"),
    [
        ([None] * 3, "no prompt begins with a system turn as the chat template"),
        ([SYSTEM, SYSTEM, "Be short."], r"the prompts do not begin with the same system turn \(they have system turns"),
        (
            [SYSTEM, None, SYSTEM],
            r"\(1 of 3 prompts begin with none, and the others have system turns of (\d+) to \1 t",
        ),
    ],
)
def test_prompts_without_one_system_turn_have_none_to_protect(
    tokenizer: PreTrainedTokenizerBase, systems: list[str | None], says: str
) -> None:
    prompts = chats(tokenizer, systems)
    with pytest.raises(DataError, match=says):
        n_protected_tokens("system", tokenizer, prompts)
    assert n_protected_tokens(7, tokenizer, prompts) == 7


def test_a_model_without_a_chat_template_has_no_system_turn() -> None:
    with pytest.raises(DataError, match="no chat template that writes a system turn: give the number"):
        load_workload("demo", "demo", 0, SIZES, "system")


@pytest.mark.parametrize(
    ("n_alike", "keep_first", "says"),
    [
        (10, 0, "10 of 10 prompts begin with the same 20 tokens ("),
        (6, 0, "6 of 10 prompts begin with the same 20 tokens ("),
        (4, 0, None),
        (10, 11, "the same 20 tokens, of which 11 are protected ("),
        # A few more are nothing to speak of: users begin alike, too.
        (10, 12, None),
        (10, 50, None),
    ],
)
def test_what_most_prompts_begin_with_is_warned_of_unless_it_is_protected(
    tokenizer: PreTrainedTokenizerBase, n_alike: int, keep_first: int, says: str | None
) -> None:
    draw = torch.Generator().manual_seed(0)
    others = torch.randint(5, 100, (10, 30), generator=draw).tolist()
    prompts = [[7] * 20 + row if place < n_alike else row for place, row in enumerate(others)]
    examples = [EncodedExample(tuple(prompt), ((3,),), 0, False) for prompt in prompts]
    warning = unprotected_beginning(tokenizer, examples, keep_first)
    assert (warning is None) == (says is None)
    if warning is not None:
        assert says is not None and says in warning and "--keep-first 20 protects it" in warning


@pytest.mark.parametrize("given", [0, 12, "12", "system"])
def test_settings_name_a_number_of_tokens_or_the_system_turn(given: Any) -> None:
    wanted = "system" if given == "system" else int(given)
    assert RunConfig.checked(keep_first=given).keep_first == wanted
    assert RunConfig.stored(RunConfig.checked(keep_first=given).model_dump()).keep_first == wanted


@pytest.mark.parametrize("given", [-1, "-1", 1.5, "user", True, None, 10**30, "9" * 30, [3]])
def test_settings_that_name_neither_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="--keep-first is .*: expected a (whole )?number"):
        RunConfig.checked(keep_first=given)


def test_a_study_from_before_tokens_could_be_protected_protects_none() -> None:
    stored = RunConfig().model_dump()
    del stored["keep_first"]
    assert RunConfig.stored(stored).keep_first == 0


def test_workers_protect_what_the_study_does() -> None:
    model, items = load_model("demo").skipping, load_workload("demo", "demo", 0, SIZES).splits["calibration"]
    found = {}
    for keep_first in (0, 12):
        setup = ModelSetup(model.protecting(keep_first), items)
        worker = pickle.loads(pickle.dumps(setup)).start("cpu", 0)
        found[keep_first] = worker.evaluate(Task(HALF)).metrics
        assert found[keep_first] == LocalEvaluator(model.protecting(keep_first), items).evaluate(Task(HALF)).metrics
    assert found[0] != found[12]


def test_evaluations_of_other_protected_tokens_are_others() -> None:
    plain = evaluation_context("model", "data", "static", False)
    assert evaluation_context("model", "data", "static", False, 0) == plain
    assert len({plain, *(evaluation_context("model", "data", "static", False, n) for n in (1, 2))}) == 3


def open_study(store: StudyStore, name: str, keep_first: int, lease: Any) -> OpenStudy:
    config = RunConfig(keep_first=keep_first, **SMALL)  # type: ignore[arg-type]
    workload = load_workload("demo", "demo", 0, config.sizes, keep_first)
    return OpenStudy(store, name, lease, config, workload, ProgressView(Console(quiet=True)))


def test_qualities_are_remembered_for_what_was_protected() -> None:
    variants = [Variant("static", HALF)]
    with StudyStore("sqlite://") as store:
        found = {}
        for name, keep_first in (("plain", 0), ("protected", 12), ("again", 12)):
            store.studies.create(name, RunConfig(keep_first=keep_first).model_dump(), OBJECTIVES)
            with store.runs.lease(name) as lease:
                study = open_study(store, name, keep_first, lease)
                [found[name]] = _qualities(study, variants, "test")
            model = study.workload.model.skipping
            fresh = QualitySet(model, study.workload.splits["test"]).evaluate(HALF, StaticRouter())
            assert found[name].kl == pytest.approx(fresh.kl)
        assert found["plain"].kl != found["protected"].kl
        assert found["again"] == found["protected"]


def test_a_study_goes_on_and_is_exported_with_what_it_protects(tmp_path: Path) -> None:
    view = ProgressView(Console(quiet=True))
    with StudyStore("sqlite://") as store:
        config = RunConfig(keep_first=12, **SMALL)  # type: ignore[arg-type]
        store.studies.create("one", config.model_dump(), OBJECTIVES)
        with store.runs.lease("one") as lease:
            Pipeline(store, "one", lease, view, config)
            assert store.studies.get("one").facts.keep_first == 12
            # As if the chat template had changed, of which a system turn's tokens are made.
            other = load_workload("demo", "demo", 0, SIZES, 9)
            with pytest.raises(SearchError, match="began with 12 protected tokens, and its system turn has 9 now"):
                Pipeline(store, "one", lease, view, config, other)
        number = store.trials.begin("one", [running(tuple(HALF), "random")])[0].number
        store.trials.finish("one", [trial(number, schedule=tuple(HALF), values=(0.1, 1.0))])
        store.studies.choose_trial("one", number)
        export_study(store, "one", tmp_path / "pruned")
    pruned = FTPForCausalLM.from_pretrained(tmp_path / "pruned")
    assert pruned.keep_first == 12
    assert json.loads((tmp_path / "pruned" / "schedule.json").read_text())["keep_first"] == 12


def test_no_study_starts_from_one_that_protects_other_tokens() -> None:
    workload = load_workload("demo", "demo", 0, SIZES, 12)
    facts = {"model_fingerprint": workload.model.fingerprint(), "data_fingerprint": workload.data_fingerprint}
    config = RunConfig(warm_start="other", keep_first=12, **SMALL)  # type: ignore[arg-type]
    with StudyStore("sqlite://") as store:
        store.studies.create("other", RunConfig(**SMALL).model_dump(), OBJECTIVES)  # type: ignore[arg-type]
        store.studies.update_facts("other", StudyFacts(**facts))
        with pytest.raises(ConfigError, match="protects the first 0 tokens of prompts, and not 12"):
            check_search(config, workload, store)
        store.studies.update_facts("other", StudyFacts(keep_first=12))
        check_search(config, workload, store)
        with pytest.raises(ConfigError, match="protects the first 12 tokens of prompts, and not 0"):
            check_search(config, replace(workload, model=workload.model.protecting(0)), store)


@pytest.mark.slow
def test_a_study_protects_the_system_turn_all_the_way(
    chat_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_here(monkeypatch)
    data = written(tmp_path / "chats.jsonl", chats(tokenizer, [SYSTEM] * 30))
    common: dict[str, Any] = {
        **{"model": str(chat_model), "data": data, "cost": "flops", "trials": 6, "rounds": 0, "target_sparsity": 0.5},
        **{"measured_points": 1, "timed_runs": 2, "latency_batch": 2, **SMALL},
    }
    n_tokens = len(tokenizer(f"system\n{SYSTEM}</s>\nuser\n")["input_ids"])
    said = io.StringIO()
    view = ProgressView(Console(file=said, width=1000))
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        for name, keep_first in (("plain", 0), ("protected", "system")):
            config = RunConfig(keep_first=keep_first, out=str(tmp_path / name), **common)
            with beginning(store, name, config, view) as (config, workload), store.runs.lease(name) as lease:
                # A warning, unless the system turn is protected.
                assert ("--keep-first system protects it" in said.getvalue()) == (name == "plain")
                said.truncate(0)
                pipeline = Pipeline(store, name, lease, view, config, workload)
                if name == "protected":
                    pipeline.run(lambda folder: write_reports(store, "protected", folder))
                else:
                    pipeline.search_only()
                    write_reports(store, name, tmp_path / name)
            # Trials of both are in one database: each was evaluated with what its study protects.
            kept = {"plain": 0, "protected": n_tokens}[name]
            assert store.studies.get(name).facts.keep_first == kept
            quality = QualitySet(workload.model.skipping.protecting(kept), workload.splits["calibration"][:4])
            for one in store.trials.of(name):
                kl = quality.evaluate(one.schedule, StaticRouter()).kl
                assert one.metrics["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        schedules = [{tuple(one.schedule) for one in store.trials.of(name)} for name in ("plain", "protected")]
        assert schedules[0] & schedules[1]
        described = describe_study(store, "plain")
    assert FTPForCausalLM.from_pretrained(tmp_path / "protected" / "model").keep_first == n_tokens
    assert described["keep_first"] == 0 and "--keep-first system" in described["unprotected_beginning"]
    assert "--keep-first system" in (tmp_path / "plain" / "report.md").read_text()
    assert f"The first {n_tokens} tokens of every prompt" in (tmp_path / "protected" / "report.md").read_text()


def test_what_is_protected_is_settled_when_a_study_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    refused = run_here(monkeypatch, capsys, tmp_path, "resume", "protected", "--keep-first", "3")
    assert refused.code == 2 and "--keep-first" in refused.err
    refused = run_here(monkeypatch, capsys, tmp_path, "run", "--keep-first", "user")
    assert refused.code == 2 and "--keep-first is 'user': expected a whole number from 0" in refused.err

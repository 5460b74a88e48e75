"""The command `prompt` runs one's own text under the schedule of a trial, and refuses what it cannot run."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ftp_core import FTPForCausalLM
from ftp_core.cost.flops import FlopsCounter
from ftp_core.loading.models import LoadedModel, load_model
from ftp_core.routers import StaticRouter
from ftp_core.schedule import BlockSparsity, SparsitySchedule, kept_count
from search.cli.prompt import print_prompt
from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from search.stages.own_prompt import OwnPrompt
from studies import StudyStore
from tests.search.command import Result, run_here
from tests.studies.records import trial

TEXT = "Tom has the red ball. Anna has the green box. Zoë paid 3 € to Anna. Question: who has the red ball? Answer:"
SCHEDULES = (
    SparsitySchedule.uniform(0.0, 12),
    SparsitySchedule([0.0] * 4 + [0.6] * 8),
    SparsitySchedule.of_halves([0.0, 0.5] * 6, [0.8, 0.0, 0.3] * 4, keeps_kv=True),
)
FAILED = len(SCHEDULES)
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("demo")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """In a folder whose database has a study of trials with these schedules, and one that failed."""
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("one", RunConfig(workers=1, device="cpu").model_dump(), OBJECTIVES)
        store.studies.create("new", RunConfig(workers=1).model_dump(), OBJECTIVES)
        for number, schedule in enumerate(SCHEDULES):
            store.trials.append("one", trial(number, (1.0, 2.0), schedule))
        store.trials.append("one", trial(FAILED, None, SCHEDULES[0]))
        store.studies.choose_trial("one", 1)
    return lambda *arguments: run_here(monkeypatch, capsys, tmp_path, *arguments)


def written(model: FTPForCausalLM, loaded: LoadedModel, n_tokens: int) -> str:
    """What generate writes."""
    ids = torch.tensor([loaded.tokenizer(TEXT)["input_ids"]])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, do_sample=False)
    text = loaded.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def blocks_that_run(place: int, length: int, blocks: tuple[BlockSparsity, ...]) -> float:
    """Blocks that a token runs by the static router: the first token goes first, then from the last one backwards."""
    rank = 0 if place == 0 else length - place
    return sum(
        (rank < kept_count(block.attention, length)) / 2 + (rank < kept_count(block.mlp, length)) / 2
        for block in blocks
    )


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_tokens_and_answers_are_those_of_the_trial_s_schedule(run: Run, loaded: LoadedModel, number: int) -> None:
    trial_of = () if number == 1 else ("--trial", str(number))
    result = run("prompt", "one", TEXT, *trial_of, "--new-tokens", "6", "--json")
    assert result.code == 0, result.err
    found, schedule = result.json(), SCHEDULES[number]
    length = len(loaded.tokenizer(TEXT)["input_ids"])
    assert (found["trial"], found["n_tokens"], found["n_blocks"], found["router"]) == (number, length, 12, "static")
    assert "".join(found["tokens"]) == TEXT
    # Before the text stands a token of the tokenizer's; signs that several tokens make are pieces of their mean.
    expected = [blocks_that_run(place, length, schedule.blocks) for place in range(1, length)]
    n_alike = next(place for place, piece in enumerate(found["tokens"]) if not piece.isascii())
    assert found["blocks_run"][:n_alike] == pytest.approx(expected[:n_alike])
    n_behind = len(TEXT.rpartition("€")[2])
    n_behind = next(n for n in range(1, length) if len("".join(found["tokens"][-n:])) >= n_behind)
    assert found["blocks_run"][-n_behind:] == pytest.approx(expected[-n_behind:])
    dense = loaded.skipping.model
    assert found["dense"] == written(FTPForCausalLM.from_dense(dense, SCHEDULES[0]), loaded, 6)
    assert found["pruned"] == written(FTPForCausalLM.from_dense(dense, schedule, StaticRouter()), loaded, 6)
    counter = FlopsCounter(loaded.skipping)
    saved = 1 - counter.count(schedule, 1, length).total / counter.count(SCHEDULES[0], 1, length).total
    assert found["flops_saved"] == pytest.approx(saved) and (saved > 0.1) == (number > 0)


def test_a_prompt_comes_from_standard_input_and_is_printed_with_the_blocks_of_its_tokens(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Zoë has the ball.\n".encode())))
    result = run("prompt", "one", "-", "--new-tokens", "1")
    assert result.code == 0, result.err
    assert "trial 1: " in result.out and "FLOPs are saved" in result.out and "\ndense: " in result.out
    shown = next(line for line in result.out.splitlines() if line.startswith("["))
    assert re.sub(r"\[\d+\]", "", shown) == "Zoë has the ball." and "[4]" in shown and "[12]" in shown


def test_terminals_shade_tokens_by_the_blocks_that_they_run() -> None:
    shown = OwnPrompt("one", 1, 0.4, "static", 3, 12, ("a [b]", "\n c"), (12.0, 6.5), "x", "", 0.25)
    console = Console(file=io.StringIO(), markup=False, highlight=False, force_terminal=True, color_system="truecolor")
    print_prompt(console, shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[30;48;2;97;168;207ma [b]\x1b[0m" in text and "240;246;251m" in text
    assert "25.0% of the prompt's FLOPs" in text
    assert "dense: x\n" in text and "pruned: (nothing: it ends the text here)" in text


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("none", TEXT), 1, "none"),
        (("new", TEXT), 1, "no chosen schedule yet.*ftp-search resume new"),
        (("one", TEXT, "--trial", "9"), 1, "no trial 9"),
        (("one", TEXT, "--trial", str(FAILED)), 1, f"Trial {FAILED} of 'one' has no finite figures: choose one"),
        (("one", " \n"), 2, "TEXT is empty"),
        (("one", "a\udcff"), 2, "not written in UTF-8"),
        (("one", TEXT, "--new-tokens", "0"), 2, "--new-tokens"),
        (("one", "word " * 6000), 1, r"The text has \d+ tokens, but (\d+) fit"),
    ],
)
def test_what_cannot_be_run_is_refused_before_weights_are_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, error: str
) -> None:
    monkeypatch.setattr("search.stages.own_prompt.load_model", lambda *_: pytest.fail("weights were read"))
    result = run("prompt", *arguments)
    assert result.code == code and not result.out and re.search(error, result.err), result.err
    if "fit" in error:
        n_tokens, n_fit = map(int, re.findall(r"has (\d+) tokens, but (\d+)", result.err)[0])
        model = load_model("demo")
        assert n_tokens == len(model.tokenizer(arguments[1].rstrip())["input_ids"])
        assert n_fit == model.skipping.context - 1

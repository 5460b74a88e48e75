"""Held-out data stays held out: no prompt is in two splits, whatever the file says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import normalizers, processors

from ftp_core.errors import DataError
from ftp_core.loading.models import LoadedModel, load_model
from ftp_core.sources import reading
from ftp_core.sources.json_lines import load_jsonl
from ftp_core.text.data import Example, fingerprint
from ftp_core.text.encoding import EncodedExample, LeftOut, encode
from search.config.run_config import RunConfig
from search.inputs import data as module
from search.inputs.data import LEAKED, REPEATED, SPLITS, Workload, load_workload, search_set
from search.inputs.examples import read_examples
from search.pipeline.workload import load_with_progress
from search.progress.progress_view import ProgressView

SIZES = {"calibration": 20, "validation": 10, "test": 10}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("demo")


@pytest.fixture
def _loaded_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_model", lambda *_: loaded)


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def colliding(n_prompts: int, n_each: int) -> list[dict[str, Any]]:
    """Every prompt several times: with other completions, other white space, and as another form."""
    rows: list[dict[str, Any]] = []
    for number in range(n_prompts):
        prompt = f"Question: Who has lamp {number}?\nAnswer:"
        rows += [{"prompt": prompt + " " * (k % 3), "completion": f" Anna {k}"} for k in range(n_each - 1)]
        rows.append({"question": f"Who has lamp {number}?", "choices": ["Anna", "Ben"], "answer": 1})
    return rows


def prompts_of(workload: Workload) -> dict[str, set[tuple[int, ...]]]:
    return {split: {example.prompt for example in workload.splits[split]} for split in SPLITS}


def assert_disjoint(workload: Workload) -> None:
    for one, other in combinations(prompts_of(workload).values(), 2):
        assert not one & other


@pytest.mark.usefixtures("_loaded_once")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_prompt_with_several_completions_stays_in_the_strictest_split_alone(tmp_path: Path, seed: int) -> None:
    data = written(tmp_path / "data.jsonl", colliding(12, 4))
    read = read_examples(data, seed, SIZES).splits
    prompts = {split: {example.prompt.strip() for example in read[split]} for split in SPLITS}
    assert prompts["calibration"] & prompts["test"] and prompts["validation"] & prompts["test"]
    workload = load_workload("demo", data, seed, SIZES)
    assert_disjoint(workload)
    # The test set keeps all, the validation set what is not in it, the calibration set what is in neither.
    taken: set[str] = set()
    for split in reversed(SPLITS):
        kept = [example for example in read[split] if example.prompt.strip() not in taken]
        assert workload.split_sizes[split] == len(kept)
        taken |= prompts[split]
    n_left_out = sum(SIZES.values()) - sum(workload.split_sizes.values())
    assert n_left_out > 0 and workload.left_out == {LEAKED: n_left_out}
    assert list(workload.split_sizes) == list(SPLITS)


@pytest.mark.usefixtures("_loaded_once")
def test_what_does_not_leak_is_left_as_it_was(tmp_path: Path, loaded: LoadedModel) -> None:
    rows = [{"prompt": f"lamp {n} is with", "completion": " Anna", "group": n % 2} for n in range(40)]
    data = written(tmp_path / "data.jsonl", rows)
    workload, read = load_workload("demo", data, 0, SIZES), read_examples(data, 0, SIZES).splits
    assert not workload.left_out and workload.split_sizes == SIZES
    for split in SPLITS:
        assert workload.splits[split] == encode(loaded.tokenizer, read[split], loaded.skipping.context)
        assert {example.group for example in workload.splits[split]} == {"0", "1"}


@pytest.mark.usefixtures("_loaded_once")
def test_the_name_of_the_data_is_that_of_what_is_worked_on(tmp_path: Path) -> None:
    twice = [{"prompt": "lamp is with", "completion": f" {name}"} for name in ("Anna", "Ben")]
    other = [{"prompt": f"lamp {n} is with", "completion": " Anna"} for n in range(20)]
    sizes = {"calibration": 12, "validation": 5, "test": 5}
    workload = load_workload("demo", written(tmp_path / "data.jsonl", other + twice), 0, sizes)
    assert workload.left_out in ({}, {LEAKED: 1})
    again = load_workload("demo", written(tmp_path / "turned.jsonl", (other + twice)[::-1]), 0, sizes)
    assert again.data_fingerprint == workload.data_fingerprint
    assert again.splits == workload.splits
    renamed = load_workload("demo", written(tmp_path / "fewer.jsonl", other), 0, sizes)
    assert renamed.data_fingerprint != workload.data_fingerprint


@pytest.mark.usefixtures("_loaded_once")
def test_streams_that_collide_are_told_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding_streams(split: str, n: int, seed: int) -> list[Example]:
        return [Example(f"lamp {number} is with", f" {split}") for number in range({"test": 2}.get(split, n))]

    monkeypatch.setattr(reading, "demo_examples", colliding_streams)
    workload = load_workload("demo", "demo", 0, {"calibration": 7, "validation": 5, "test": 2})
    assert workload.split_sizes == {"calibration": 2, "validation": 3, "test": 2}
    assert workload.left_out == {LEAKED: 5 + 2}
    assert_disjoint(workload)


@pytest.mark.usefixtures("_loaded_once")
def test_the_demo_has_nothing_to_leave_out_and_says_the_distance_of_each_answer() -> None:
    workload = load_workload("demo", "demo", 3, SIZES)
    assert (workload.left_out, workload.split_sizes) == ({}, SIZES)
    groups = [example.group for split in SPLITS for example in workload.splits[split]]
    assert all(group is not None and group.startswith("distance ") for group in groups)


def test_prompts_that_are_the_same_to_the_model_alone_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    careless = load_model("demo")
    careless.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    monkeypatch.setattr(module, "load_model", lambda *_: careless)
    rows = [
        {"prompt": prompt, "completion": " x"}
        for n in range(20)
        for prompt in (f"lamp {n} is with", f"LAMP {n} is with")
    ]
    workload = load_workload("demo", written(tmp_path / "data.jsonl", rows), 0, SIZES)
    assert workload.left_out[LEAKED] > 0
    assert_disjoint(workload)


@pytest.mark.usefixtures("_loaded_once")
def test_a_split_that_is_all_leaks_is_an_error_that_says_so(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", [{"prompt": "lamp", "completion": f" {n}"} for n in range(40)])
    with pytest.raises(DataError, match=r"No calibration example is left, .* give data with more distinct prompts"):
        load_workload("demo", data, 0, SIZES)


@pytest.mark.usefixtures("_loaded_once")
def test_prompts_that_are_all_too_long_are_an_error_that_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} " * 400, "completion": " x"} for n in range(100, 140)]
    message = r"None of the 20 .* can be used: 20 longer than the model's context\. .* shorten its prompt"
    with pytest.raises(DataError, match=message):
        load_workload("demo", written(tmp_path / "data.jsonl", rows), 0, SIZES)


@pytest.fixture
def _careless(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose tokenizer takes accents away, as some do."""
    careless = replace(loaded, tokenizer=deepcopy(loaded.tokenizer))
    careless.tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents()]
    )
    careless.tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    monkeypatch.setattr(module, "load_model", lambda *_: careless)


MIXED: list[dict[str, Any]] = [
    *({"prompt": f"lamp {n} is with", "completion": " Anna"} for n in range(40)),
    # Its words fit, but not all of them at once.
    *({"prompt": f"{n} " * 400, "completion": " x"} for n in range(100, 103)),
    # The tokenizer makes nothing of an accent alone.
    *({"prompt": f"lamp {n}0 is with", "completion": "\u0301"} for n in range(2)),
    # "sw" is one token, the first one; without a token before every text nothing is left of "s".
    {"prompt": "s", "completion": "wer"},
    *({"prompt": f"{n} Ans", "completion": "wer"} for n in range(4)),
    *({"prompt": "lamp 1 is with", "completion": " Anna"} for _ in range(5)),
    {"prompt": "lamp 2 is with", "completion": " Ben"},
]


@pytest.mark.usefixtures("_careless")
def test_every_example_that_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    sizes = {"calibration": 28, "validation": 12, "test": 11}
    workload = load_workload("demo", written(tmp_path / "data.jsonl", MIXED), 0, sizes)
    leaked = workload.left_out.get(LEAKED, 0)
    assert {**workload.left_out, LEAKED: leaked} == {
        REPEATED: 5,
        LEAKED: leaked,
        LeftOut.TOO_LONG: 3,
        LeftOut.NO_CONTINUATION: 2,
        LeftOut.NO_PROMPT: 1,
    }
    assert sum(workload.split_sizes.values()) + sum(workload.left_out.values()) == len(MIXED)
    assert workload.shared_boundaries == 4


@pytest.mark.usefixtures("_loaded_once")
@given(n=st.integers(3, 60), asked=st.tuples(*[st.integers(1, 30)] * 3), search_items=st.integers(1, 40))
def test_splits_that_are_smaller_than_asked_for_are_said_with_the_reason(
    tmp_path_factory: pytest.TempPathFactory, n: int, asked: tuple[int, int, int], search_items: int
) -> None:
    rows = [{"prompt": f"lamp {number} is with", "completion": " Anna"} for number in range(n)]
    data = written(tmp_path_factory.mktemp("data") / "data.jsonl", [*rows, *rows[:2]])
    workload = load_workload("demo", data, 0, dict(zip(SPLITS, asked, strict=True)))
    said = workload.fewer_than_asked(search_items)
    for split, size in zip(SPLITS, asked, strict=True):
        assert (f"{split} {workload.split_sizes[split]} instead of {size}" in said) == (n < sum(asked)) or (
            workload.split_sizes[split] == size
        )
    assert (f"the data has {n} distinct examples, which the splits share" in said) == (n < sum(asked))
    n_search = min(search_items, workload.split_sizes["calibration"])
    assert (f"search {n_search} instead of {search_items}" in said) == (n_search < search_items)
    assert bool(said) == (n < sum(asked) or search_items > asked[0])


@pytest.mark.usefixtures("_loaded_once")
def test_splits_that_are_smaller_since_examples_were_left_out_say_so(tmp_path: Path) -> None:
    workload = load_workload("demo", written(tmp_path / "data.jsonl", MIXED), 0, SIZES)
    n_left_out = sum(SIZES.values()) - sum(workload.split_sizes.values())
    said = workload.fewer_than_asked(4)
    assert n_left_out and said.startswith("Fewer items than asked for: ")
    assert f"{n_left_out} of the examples were left out" in said and "distinct" not in said


@pytest.mark.usefixtures("_careless")
def test_what_is_left_out_is_said_while_the_data_is_loaded(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", MIXED)
    console = Console(file=StringIO(), width=200)
    config = RunConfig(data=data, calibration_items=28, validation_items=12, test_items=11, search_items=20)
    load_with_progress(config, ProgressView(console))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Left out 5 examples that repeat another one." in said
    assert "Left out 3 examples longer than the model's context." in said
    assert "Left out 2 examples with a completion or a choice that adds no token." in said
    assert "Left out 1 example without a token that is of the prompt alone." in said
    assert "In 4 examples one token spans the end of the prompt" in said


@pytest.mark.usefixtures("_careless")
def test_a_split_of_which_nothing_can_be_used_says_why(tmp_path: Path) -> None:
    rows = [{"prompt": f"lamp {n} is with", "completion": "\u0301"} for n in range(30)]
    rows += [{"prompt": f"{n} " * 400, "completion": " x"} for n in range(100, 110)]
    message = r"None of the 20 calibration examples can be used: 1\d with a .* adds no token"
    with pytest.raises(DataError, match=message) as caught:
        load_workload("demo", written(tmp_path / "data.jsonl", rows), 0, SIZES)
    assert "longer than the model's context. Of the first: Example 1 " in str(caught.value)
    assert "shorter prompts" not in str(caught.value)


@pytest.mark.usefixtures("_loaded_once")
def test_the_name_of_the_data_changes_only_where_it_is_read_as_another_text_than_before(tmp_path: Path) -> None:
    def names(row: dict[str, Any]) -> tuple[str, str]:
        rows = [{"prompt": f"lamp {n} is with", "completion": " Anna"} for n in range(40)]
        data = written(tmp_path / "data.jsonl", [*rows, row])
        sizes = {"calibration": 21, "validation": 10, "test": 10}
        read = read_examples(data, 0, sizes).splits
        before = hashlib.sha256("".join(fingerprint(read[split]) for split in SPLITS).encode()).hexdigest()
        return load_workload("demo", data, 0, sizes).data_fingerprint, before

    now, before = names({"prompt": "print(", "completion": '"hello")'})
    assert now == before
    now, before = names({"prompt": "Ans", "completion": "wer"})
    assert now != before


def test_splits_that_share_a_prompt_make_no_workload(loaded: LoadedModel) -> None:
    one, two, three = (EncodedExample((1, n), ((2,),), 0, False) for n in (3, 4, 5))
    sound = Workload(loaded, {"calibration": [one, one], "validation": [two], "test": [three]}, "")
    assert sound.split_sizes == {"calibration": 2, "validation": 1, "test": 1}
    same_prompt = replace(one, continuations=((7,),))
    with pytest.raises(DataError, match="The prompt of test example 2 is among the calibration examples, too"):
        replace(sound, splits={**sound.splits, "test": [three, same_prompt]})


rows = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3), st.sampled_from(["", " ", "\n"])), min_size=3)


@given(drawn=rows, seed=st.integers(0, 3))
def test_no_file_makes_splits_that_share_a_prompt(
    loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, str]], seed: int
) -> None:
    data = written(
        tmp_path_factory.getbasetemp() / "drawn.jsonl",
        [{"prompt": f"lamp {n}{end}", "completion": f" {k}"} for n, k, end in drawn],
    )
    sizes = {"calibration": 8, "validation": 4, "test": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_model", lambda *_: loaded)
        try:
            workload = load_workload("demo", data, seed, sizes)
        except DataError:
            # Too little: fewer examples than splits, or too few prompts for three splits that share none.
            assert len({fingerprint([one]) for one in load_jsonl(Path(data))}) < 3 or len({n for n, _, _ in drawn}) < 12
            return
    assert_disjoint(workload)


@pytest.mark.usefixtures("_loaded_once")
@pytest.mark.parametrize("search_items", [1, 20, 99])
def test_the_search_set_is_a_part_of_the_calibration_set(search_items: int) -> None:
    workload = load_workload("demo", "demo", 0, SIZES)
    found = search_set(RunConfig(search_items=search_items), workload)
    assert found == list(workload.splits["calibration"])[:search_items]


@pytest.mark.usefixtures("_loaded_once")
def test_chance_is_what_guessing_has_right_on_the_multiple_choice_items_of_each_split(tmp_path: Path) -> None:
    names = ("Anna", "Ben", "Carl", "Dora", "Emil")
    rows: list[dict[str, Any]] = []
    for number in range(60):
        choices = list(names[: 2 + number % 4])
        rows.append({"question": f"Who has lamp {number}?", "choices": choices, "answer": number % len(choices)})
        rows.append({"prompt": f"Lamp {number} is with", "completion": " Anna"})
    workload = load_workload("demo", written(tmp_path / "data.jsonl", rows), 0, SIZES)
    random = np.random.default_rng(0)
    for split, examples in workload.splits.items():
        asked = [example for example in examples if example.has_choices]
        assert asked and len(asked) < len(examples)
        rounds = 4000
        right = sum(
            (random.integers(len(example.continuations), size=rounds) == example.answer).sum() for example in asked
        )
        assert workload.chance[split] == pytest.approx(right / (rounds * len(asked)), abs=0.02)
        assert 1 / 5 <= workload.chance[split] <= 1 / 2


@pytest.mark.usefixtures("_loaded_once")
def test_data_without_choices_has_no_chance(tmp_path: Path) -> None:
    rows = [{"prompt": f"Lamp {number} is with", "completion": " Anna"} for number in range(60)]
    assert load_workload("demo", written(tmp_path / "data.jsonl", rows), 0, SIZES).chance == {}

"""Examples of several sources are mixed by their weights; other data is held apart; the model's own text stays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import DataError
from ftp_core.loading.models import LoadedModel, load_model
from ftp_core.sources import own_text as own_text_module
from ftp_core.sources.own_text import own_text
from ftp_core.sources.source import Form
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs import data as module
from search.inputs.data import load_workload
from search.inputs.examples import ReadSource, read_examples
from search.inputs.same_inputs import check_same_elsewhere
from search.problem.objectives import OBJECTIVES
from studies import StudyStore
from studies.records.study_facts import DataSource, StudyFacts

SIZES = {"calibration": 16, "validation": 8, "test": 4}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("demo")


@pytest.fixture
def _loaded_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_model", lambda *_: loaded)


def written(path: Path, word: str, n: int = 60) -> str:
    rows = [{"prompt": f"{word} {number} is with", "completion": " Anna"} for number in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_sources_have_their_shares_of_every_split_and_of_every_beginning(tmp_path: Path) -> None:
    lamps, keys = written(tmp_path / "a.jsonl", "Lamp"), written(tmp_path / "b.jsonl", "Key")
    read = read_examples(f"3:{lamps} + {keys}", 0, SIZES)
    for split, size in SIZES.items():
        groups = [example.group for example in read.splits[split]]
        assert len(groups) == size
        for n in range(4, size + 1, 4):
            assert groups[:n].count(lamps) == 3 * n // 4
    assert [source.name for source in read.sources] == [f"3:{lamps}", keys]
    assert [sum(source.sizes.values()) for source in read.sources] == [21, 7]
    # Alone, a source is split as ever.
    assert read_examples(keys, 0, {"test": 4}).splits["test"][0].group is None


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=4), size=st.integers(1, 50))
def test_shares_add_up_to_what_was_asked_for(weights: list[float], size: int) -> None:
    data = " + ".join(f"{weight:.4f}:demo" for weight in weights)
    least = min(round(weight, 4) for weight in weights) / sum(round(weight, 4) for weight in weights)
    if size * least >= 1:
        assert len(read_examples(data, 0, {"test": size}).splits["test"]) == size


def test_a_source_without_a_share_is_an_error(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", "Lamp")
    with pytest.raises(DataError, match="4 examples of 2 sources, of which .* would give none: ask for more"):
        read_examples(f"100:demo + {data}", 0, {"test": 4})


def test_columns_and_a_list_of_sources_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "Why?", "a": "So."}\n{"q": "Who?", "a": "Ann."}\n')
    read = read_examples(str(tmp_path / "a.jsonl"), 0, {"test": 2}, Form("prompt=q,completion=a"))
    assert {example.completion for example in read.splits["test"]} == {" So.", " Ann."}


@pytest.mark.usefixtures("_loaded_once")
def test_other_data_is_apart_from_the_study_s_own(tmp_path: Path) -> None:
    own, other = written(tmp_path / "own.jsonl", "Lamp"), written(tmp_path / "other.jsonl", "Key")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(Path(own).read_text() + Path(other).read_text())
    plain = load_workload("demo", own, 0, SIZES)
    workload = load_workload("demo", own, 0, SIZES, test_data=f"{other} + {mixed} + demo")
    assert workload.data_fingerprint == plain.data_fingerprint and workload.split_sizes == plain.split_sizes
    assert list(workload.elsewhere) == [f"test: {other}", f"test: {mixed}", "test: demo"]
    prompts = {example.prompt for examples in workload.splits.values() for example in examples}
    for examples in workload.elsewhere.values():
        assert examples and not prompts & {example.prompt for example in examples}
    assert set(workload.chance) == {"test: demo"}
    with pytest.raises(DataError, match="All prompts of --test-data"):
        load_workload("demo", own, 0, {"calibration": 40, "validation": 10, "test": 10}, test_data=own)


def test_other_data_that_changed_since_it_was_tested_on_is_refused(tmp_path: Path) -> None:
    facts = StudyFacts(test_sources=(DataSource("a.jsonl", "", "12", {"test": 4}),))
    with StudyStore(f"sqlite:///{tmp_path / 'ftp-studies.db'}") as store:
        store.studies.create("one", RunConfig(workers=1).model_dump(), OBJECTIVES)
        store.studies.update_facts("one", facts)
        study = store.studies.get("one")
    check_same_elsewhere(study, [ReadSource("b.jsonl", "", "34", {}), ReadSource("a.jsonl", "", "12", {})])
    with pytest.raises(SearchError, match=r"The test data a\.jsonl changed"):
        check_same_elsewhere(study, [ReadSource("a.jsonl", "", "34", {})])


# The model's own text


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(own_text_module, "PROMPT_TOKENS", 12)
    monkeypatch.setattr(own_text_module, "COMPLETION_TOKENS", 6)


@pytest.mark.usefixtures("_own_cache")
def test_own_text_is_kept_by_model_and_seed(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = own_text(loaded, 20, 0), own_text(loaded, 20, 1)
    assert len(set(first)) > 15 and not set(first) & set(other)
    words = " ".join(example.prompt + example.completion for example in first)
    assert re.search(r"\b(Anna|Ben|lamp|is with|in the)\b", words)
    [kept] = (tmp_path / "cache").rglob("*-0-20.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(own_text_module, "_written", lambda *_: pytest.fail("written again"))
        assert own_text(loaded, 20, 0) == first
    # What was cut off is written again, and is the same.
    kept.write_bytes(kept.read_bytes()[:-20])
    assert own_text(loaded, 20, 0) == first


@pytest.mark.usefixtures("_loaded_once", "_own_cache")
def test_own_text_makes_a_study_s_splits_and_other_data() -> None:
    workload = load_workload("demo", "self", 0, SIZES, test_data="self")
    assert workload.split_sizes == SIZES and len(workload.elsewhere["test: self"]) >= 3
    assert load_workload("demo", "self", 0, SIZES).data_fingerprint == workload.data_fingerprint

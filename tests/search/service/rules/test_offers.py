"""What the form offers of the folders that the service may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.service.rules import offers
from search.service.rules.offers import offered
from search.service.rules.roots import checked_data, checked_model


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with models, data, and what is neither."""
    root = (tmp_path / "root").resolve()
    for file in (
        *("a.jsonl", "notes.pdf", "README.md", ".hidden/b.jsonl", "tables/c.parquet", "tables/d.csv.gz"),
        *("models/large/config.json", "models/large/tokenizer.json", "models/large/sub/e.jsonl", "models/small.gguf"),
        *("2 + 3.jsonl", "mixed/f.txt", "mixed/g.txt", "mixed/below/h.txt"),
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "i.jsonl").touch()
    (root / "link.jsonl").symlink_to(outside / "i.jsonl")
    (root / "up").symlink_to(outside)
    return root


def test_models_and_data_below_the_roots_are_offered_and_nothing_else(root: Path) -> None:
    found = offered([root])
    below = {field: [str(Path(one).relative_to(root)) for one in values[2:]] for field, values in found.items()}
    assert found["model"][:2] == ["demo", "smollm2"] and found["data"][:2] == ["demo", "self"]
    assert below["model"] == ["models/small.gguf", "models/large"]
    assert below["data"] == [
        *("a.jsonl", "mixed/f.txt", "mixed/g.txt"),
        *("tables", "tables/c.parquet", "tables/d.csv.gz", "mixed/below/h.txt"),
    ]
    for model in found["model"]:
        assert checked_model(model, [root], False) == model
    for data in found["data"]:
        assert checked_data(data, [root], False) == data
    assert offered([]) == {"model": ["demo", "smollm2"], "data": ["demo", "self"]} == offered([root / "gone"])


def test_no_more_is_offered_and_looked_at_than_the_limits_allow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "MOST_OFFERED", 4)
    assert {field: len(values) for field, values in offered([root]).items()} == {"model": 4, "data": 4}
    monkeypatch.setattr(offers, "MOST_ENTRIES", 0)
    assert offered([root]) == {"model": ["demo", "smollm2"], "data": ["demo", "self"]}

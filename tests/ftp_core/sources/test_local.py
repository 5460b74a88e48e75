"""Files and folders of every kind hold the same examples; what cannot be read is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from ftp_core.errors import DataError
from ftp_core.sources.columns import Columns
from ftp_core.sources.local import check_path, load_path
from ftp_core.text.data import Example

ROWS = [{"prompt": f"Count to {n}", "completion": f" so: {n}, é"} for n in range(12)]
EXPECTED = [Example(row["prompt"], row["completion"]) for row in ROWS]


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def on_disk(path: Path) -> None:
    datasets.DatasetDict({"test": table().select([0]), "train": table()}).save_to_disk(path)


def split_in_two(path: Path) -> None:
    path.mkdir()
    table().select(range(6)).to_csv(path / "a.csv")
    table().select(range(6, 12)).to_csv(path / "b.csv")
    (path / "README.md").write_text("# About")


KINDS: dict[str, Callable[[Path], object]] = {
    "data.parquet": lambda path: table().to_parquet(path),
    "data.csv": lambda path: table().to_csv(path),
    "data.tsv": lambda path: table().to_csv(path, sep="\t"),
    "data.json": lambda path: path.write_text(json.dumps(ROWS)),
    "data.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "data[*].parquet": lambda path: table().to_parquet(path),
    "disk": on_disk,
    "folder": split_in_two,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_and_folder_holds_the_same_examples(tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    check_path(tmp_path / name)
    assert load_path(tmp_path / name) == EXPECTED


def test_columns_of_a_table_may_be_named(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"q": "Why?", "a": "So."}]).to_parquet(tmp_path / "x.parquet")
    found = load_path(tmp_path / "x.parquet", Columns.parsed("prompt=q,completion=a"))
    assert found == [Example("Why?", " So.")]


def test_text_files_are_cut_where_words_begin(tmp_path: Path) -> None:
    text = "".join(f"Line {n} of a long story.\n" for n in range(300))
    (tmp_path / "story.txt").write_text(text)
    found = load_path(tmp_path / "story.txt")
    assert len(found) > 5
    assert text.startswith("".join(one.prompt + one.completion for one in found))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "other.md").write_text(text.replace("story", "fable"))
    both = load_path(tmp_path)
    assert len(both) == 2 * len(found) and set(found) < set(both)
    # Languages without spaces are cut all the same.
    (tmp_path / "story.txt").write_text("話" * 3000)
    assert len(load_path(tmp_path / "story.txt")) == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad.parquet", b"no parquet", "cannot be read as parquet"),
        ("bad.json", b"{no json", "cannot be read as json"),
        ("bad.csv", b"a,b\n1,2\n", r"row 1: has the keys \"a\", \"b\""),
        ("short.txt", b"Too short.", "too short; expected at least"),
        ("bad.txt", b"\xff\xfe", r"not UTF-8 \(byte 1\)"),
        ("bad.jsonl", b"Prose.", "line 1: not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        load_path(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.jsonl"])
def test_a_missing_file_is_an_error_before_any_work(tmp_path: Path, name: str) -> None:
    for read in (check_path, load_path):
        with pytest.raises(DataError, match=r"none\.\w+: cannot be read \(No such file"):
            read(tmp_path / name)


def test_a_folder_without_examples_and_one_without_training_data_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for read in (check_path, load_path):
        with pytest.raises(DataError, match="a folder without files of examples"):
            read(tmp_path / "empty")
    datasets.DatasetDict({"one": table(), "two": table()}).save_to_disk(tmp_path / "disk")
    with pytest.raises(DataError, match="has the splits one, two, and none named train"):
        load_path(tmp_path / "disk")
    assert load_path(tmp_path / "disk" / "one") == EXPECTED


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().to_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "ftp_core.sources.tables", raising=False)
    with pytest.raises(DataError, match=r"datasets is missing .*'\.\[datasets\]'"):
        load_path(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("arc_easy.jsonl", ""),
        ("arc_challenge.jsonl", ""),
        ("alpaca.jsonl", ""),
        ("hellaswag.jsonl", "prompt=question,choices=choices,label=answer"),
        ("winogrande.jsonl", "prompt=question,choices=choices,label=answer"),
        ("wikitext2-valid-300k.txt", ""),
    ],
)
def test_real_files_are_read_by_their_path(assets: Path, name: str, columns: str) -> None:
    found = load_path(assets / "data" / name, Columns.parsed(columns))
    assert len(found) >= (250 if name.endswith("txt") else 400)
    for example in found:
        if name.startswith("winogrande"):
            assert example.scored and all(choice.endswith(example.scored) for choice in example.choices)
        if name.startswith("hellaswag"):
            assert len(example.choices) == 4 and not example.prompt.startswith("Question")

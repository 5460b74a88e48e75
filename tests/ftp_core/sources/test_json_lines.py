"""Examples come from JSON Lines as they should, and what is wrong with a line is said with its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftp_core.errors import DataError
from ftp_core.sources.json_lines import load_jsonl
from ftp_core.text.data import Example, fingerprint, split_examples

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def load(file: Path, *rows: object) -> list[Example]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_jsonl(file)


# Reading


def test_a_prompt_and_its_completion_are_taken_as_they_are(file: Path) -> None:
    row = {"prompt": " Once upon a time\n", "completion": "  there was", "id": 7}
    assert load(file, row) == [Example(" Once upon a time\n", "  there was")]


def test_alpaca_with_an_input_gets_the_published_template(file: Path) -> None:
    [example] = load(file, {"instruction": "Add {them}.", "input": "1 {0} 2", "output": "3"})
    assert example.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd {them}.\n\n### Input:\n1 {0} 2\n\n"
        "### Response:"
    )
    assert example.completion == "\n3"
    assert (example.choices, example.answer) == ((), None)


@pytest.mark.parametrize("no_input", [{"input": ""}, {"input": None}, {}])
def test_alpaca_without_an_input_gets_the_template_without_one(file: Path, no_input: dict[str, str | None]) -> None:
    [example] = load(file, {"instruction": "Sing.", "output": "La", **no_input})
    assert example.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSing.\n\n### Response:"
    )
    assert example.completion == "\nLa"


def test_multiple_choice_reads_as_in_lm_eval(file: Path) -> None:
    [example] = load(file, {"question": "What is wet?", "choices": ["Fire", "Water", "Sand"], "answer": 1})
    assert example == Example("Question: What is wet?\nAnswer:", " Water", (" Fire", " Water", " Sand"), 1)


def test_a_file_may_mix_forms(file: Path) -> None:
    mixed = load(
        file,
        {"prompt": "a", "completion": " b"},
        {"question": "c", "choices": ["d", "e"], "answer": 0},
        {"instruction": "f", "input": "", "output": "g"},
    )
    assert [example.completion for example in mixed] == [" b", " d", "\ng"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": " b"},
        {"instruction": "a", "output": "b"},
        {"question": "a", "choices": ["b", "c"], "answer": 0},
    ],
)
def test_every_form_may_name_a_group(file: Path, row: dict[str, object]) -> None:
    groups = ["far", " far away ", 12, -3, None]
    found = load(file, row, *({**row, "group": group} for group in groups))
    assert [example.group for example in found] == [None, "far", "far away", "12", "-3", None]
    # A group is no content: the same item has the same name with another one.
    assert len(set(found)) == len({fingerprint([example]) for example in found}) == 1


def test_byte_order_mark_windows_line_ends_and_blank_lines_do_no_harm(file: Path) -> None:
    line = '{"prompt": "a\u2028\u0085é", "completion": " b"}'
    file.write_bytes(f"\ufeff{line}\r\n\r\n \t\n{line}".encode())
    assert load_jsonl(file) == [Example("a\u2028\u0085é", " b")] * 2


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_every_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    file = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": end}, ensure_ascii=False) for prompt, end in rows]
    file.write_text("\n".join(lines), encoding="utf-8", newline="")
    assert load_jsonl(file) == [Example(prompt, end) for prompt, end in rows]


QUESTION = {"question": "q", "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "JSON beyond what Python reads"),
        (b'{"answer": ' + b"1" * 5000 + b"}", "JSON beyond what Python reads"),
        (b'[{"prompt": "a", "completion": "b"}]', "a JSON array where an object was expected"),
        (b"null", "a JSON null where an object was expected"),
        (b"{}", "has the keys none"),
        (b'{"texts": "a\\nb", "n\\n": 1}', r'has the keys "texts", "n\\n"'),
        (b'{"prompt": "a"}', 'has the keys "prompt"'),
        (b'{"prompt": "\xe9", "completion": "b"}', r"not UTF-8 \(byte 13 of the line\)"),
        (b'{"prompt": "", "completion": "b"}', '"prompt" is empty'),
        (b'{"prompt": "a", "completion": " \\n"}', '"completion" is empty'),
        (b'{"prompt": 1, "completion": "b"}', '"prompt" must be a text, but is a JSON number'),
        (b'{"prompt": "\\ud800", "completion": "b"}', '"prompt" holds half a character'),
        (b'{"instruction": "a", "input": ["b"], "output": "c"}', '"input" must be a text, but is a JSON array'),
        (b'{"instruction": "a", "output": ""}', '"output" is empty'),
        (b'{"prompt": "a", "completion": "b", "group": 1.5}', '"group" must be a text or a whole number, but is 1.5'),
        (b'{"prompt": "a", "completion": "b", "group": true}', '"group" must be .* but is a JSON boolean'),
        (b'{"instruction": "a", "output": "b", "group": ["c"]}', '"group" must be .* but is a JSON array'),
        (b'{"prompt": "a", "completion": "b", "group": " "}', '"group" is empty'),
        (b'{"question": "q", "choices": "ab", "answer": 0}', '"choices" must be a list of at least 2'),
        (b'{"question": "q", "choices": ["a"], "answer": 0}', '"choices" must be a list of at least 2'),
        (b'{"question": "q", "choices": ["a", ""], "answer": 0}', r'"choices"\[1\] is empty'),
        (b'{"question": "q", "choices": ["a", 2], "answer": 0}', r'"choices"\[1\] must be a text'),
        *[
            (json.dumps({**QUESTION, "answer": answer}).encode(), rf"0 to 1, but is {found}\.")
            for answer, found in [
                (2, "2"),
                (-1, "-1"),
                (0.0, "0.0"),
                ("A", "a JSON string"),
                (True, "a JSON boolean"),
                (None, "a JSON null"),
            ]
        ],
    ],
)
def test_a_bad_line_is_named_with_the_reason_in_one_line(file: Path, line: bytes, reason: str) -> None:
    file.write_bytes(b'{"prompt": "a", "completion": "b"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=reason) as error:
        load_jsonl(file)
    message = str(error.value)
    assert message.startswith(f"{file}, line 3: ")
    assert len(message.splitlines()) == 1


def test_a_file_in_another_encoding_is_told_to_be_saved_as_utf_8(file: Path) -> None:
    file.write_text('{"prompt": "a", "completion": "b"}', encoding="utf-16")
    with pytest.raises(DataError, match="line 1: not UTF-8.*save the file as UTF-8"):
        load_jsonl(file)


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_without_examples_is_an_error(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(DataError, match="holds no example; expected"):
        load_jsonl(file)


def test_a_missing_file_and_a_folder_are_errors_that_name_them(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(DataError, match=reason) as error:
            load_jsonl(path)
        assert str(path) in str(error.value)


# Real data


@pytest.mark.parametrize(
    ("name", "rows", "numbers_of_choices"),
    [
        ("alpaca", 999, {0}),
        ("arc_challenge", 400, {3, 4}),
        ("arc_easy", 400, {3, 4, 5}),
        ("hellaswag", 400, {4}),
        ("winogrande", 400, {2}),
    ],
)
def test_real_files_load_and_split(assets: Path, name: str, rows: int, numbers_of_choices: set[int]) -> None:
    loaded = load_jsonl(assets / "data" / f"{name}.jsonl")
    assert len(loaded) == rows
    assert {len(example.choices) for example in loaded} == numbers_of_choices
    for example in loaded:
        assert example.prompt.endswith(("### Response:", "\nAnswer:"))
        assert example.completion[0] in " \n"
        assert example.answer is None or example.choices[example.answer] == example.completion
    sets = split_examples(loaded, 0, {"calibration": 200, "validation": 80, "test": 80})
    assert [len(part) for part in sets.values()] == [200, 80, 80]


def test_plain_text_is_refused_with_its_line(assets: Path) -> None:
    with pytest.raises(DataError, match="line 2: not JSON"):
        load_jsonl(assets / "data" / "wikitext2-valid-300k.txt")

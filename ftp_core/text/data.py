"""Examples to measure and to train on: read from JSON Lines, split into disjoint sets, named by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from ftp_core.errors import DataError

# Stanford Alpaca's published templates (its train.py, PROMPT_DICT).
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

_FORMS = (
    'one JSON object with "prompt" and "completion", '
    'with "instruction", "output" and perhaps "input" (Alpaca), '
    'or with "question", "choices" and "answer" (multiple choice)'
)


@dataclass(frozen=True)
class Example:
    """A prompt and what should follow it.

    Attributes:
        prompt: Text that the model reads.
        completion: The right continuation, with the white space that separates it from the prompt.
        choices: Continuations to choose from, each with its leading space; empty if there is no choice.
        answer: Index of the right choice: `choices[answer] == completion`; None if there is no choice.
        group: Kind of the item, by which figures are told apart; None if unknown. It is no part of the content.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    answer: int | None = None
    group: str | None = field(default=None, compare=False)


def load_jsonl(path: str | os.PathLike[str]) -> list[Example]:
    r"""Read examples from a JSON Lines file in UTF-8.

    A line has one of three forms, and a file may mix them; other keys than these and "group" are ignored, and so are
    blank lines:

    - `{"prompt", "completion"}`: taken as they are, white space between the two included.
    - `{"instruction", "input", "output"}`: Alpaca's, put into its published template, which ends with "### Response:".
      The completion is a line break and the output, as in the text that Alpaca's dataset and most trainers use. Without
      an input (absent or empty), the template without input.
    - `{"question", "choices", "answer"}`: `answer` counts the choices from 0. As in lm-evaluation-harness for ARC, the
      prompt is `Question: {question}\nAnswer:` and a choice is a space and its text. WinoGrande and HellaSwag items
      are treated alike (WinoGrande's `_` stays in the question), so figures on them do not compare with published ones.

    Each form may have a "group", a text or a whole number, by which reports tell accuracy apart. `null` is no group.

    Args:
        path: The file.

    Returns:
        One example a line, in the file's order.

    Raises:
        DataError: The file cannot be read or has no example, or a line has none of the forms; says which line and why.
    """
    examples = []
    try:
        with Path(path).open("rb") as lines:
            # Bytes, because text files end lines at \r, too.
            for number, line in enumerate(lines, 1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    try:
                        examples.append(_parse_line(content))
                    except DataError as error:
                        raise DataError(f"{path}, line {number}: {error}") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not examples:
        raise DataError(f"{path}: holds no example; expected on each line {_FORMS}.")
    return examples


def check_readable(path: Path) -> None:
    """Raise `DataError` if a file of examples cannot be opened."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike[str], error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}); expected a JSON Lines file.")


def _parse_line(line: bytes) -> Example:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno}); expected {_FORMS}.") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits; thousands of nested brackets
        raise DataError(f"JSON beyond what Python reads; expected {_FORMS}.") from None
    if not isinstance(row, dict):
        raise DataError(f"a JSON {_json_type(row)} where an object was expected; expected {_FORMS}.")
    return replace(_content(row), group=_group(row))


def _content(row: Mapping[str, Any]) -> Example:
    if row.keys() >= {"prompt", "completion"}:
        return Example(_text(row, "prompt"), _text(row, "completion"))
    if row.keys() >= {"instruction", "output"}:
        return _alpaca(row)
    if row.keys() >= {"question", "choices", "answer"}:
        return _multiple_choice(row)
    keys = ", ".join(map(_quoted, list(row)[:8])) or "none"
    raise DataError(f"has the keys {keys}; expected {_FORMS}.")


def _alpaca(row: Mapping[str, Any]) -> Example:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    # Alpaca has an empty string; other files write null, or leave it out.
    if row.get("input") in (None, ""):
        prompt = _ALPACA_WITHOUT_INPUT.format(instruction=instruction)
    else:
        prompt = _ALPACA_WITH_INPUT.format(instruction=instruction, input=_text(row, "input"))
    return Example(prompt, "\n" + output)


def _multiple_choice(row: Mapping[str, Any]) -> Example:
    question, texts, answer = _text(row, "question"), row["choices"], row["answer"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise DataError('"choices" must be a list of at least 2 texts.')
    choices = tuple(" " + _check_text(text, f'"choices"[{index}]') for index, text in enumerate(texts))
    if type(answer) is not int or not 0 <= answer < len(choices):  # not isinstance: True is an int
        found = answer if type(answer) in (int, float) else f"a JSON {_json_type(answer)}"
        raise DataError(f'"answer" must be the index of the right choice, 0 to {len(choices) - 1}, but is {found}.')
    return Example(f"Question: {question}\nAnswer:", choices[answer], choices, answer)


def _group(row: Mapping[str, Any]) -> str | None:
    group = row.get("group")
    if group is None:
        return None
    if type(group) is int:  # not isinstance: True is an int
        return str(group)
    if not isinstance(group, str):
        found = group if type(group) is float else f"a JSON {_json_type(group)}"
        raise DataError(f'"group" must be a text or a whole number, but is {found}.')
    return _check_text(group, '"group"').strip()


def _text(row: Mapping[str, Any], key: str) -> str:
    return _check_text(row[key], f'"{key}"')


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, but is a JSON {_json_type(value)}.")
    if not value.strip():
        raise DataError(f"{name} is empty; expected some text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write one half of a pair of \uD8xx\uDCxx; no tokenizer reads it
        raise DataError(f"{name} holds half a character (a lone \\ud800 to \\udfff); remove it.") from None
    return value


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _quoted(key: str) -> str:
    return json.dumps(key if len(key) <= 40 else key[:37] + "...")


def split_examples(examples: Iterable[Example], seed: int, sizes: Mapping[str, int]) -> dict[str, list[Example]]:
    """Split examples into disjoint sets of distinct ones.

    The split depends on the content, the seed and the sizes alone, not on the order of the examples, which are shuffled
    by a seeded hash of their content. Of duplicates one stays, with the last of their groups in the alphabet.

    Args:
        examples: Examples to split.
        seed: Seed of the shuffling.
        sizes: Number of examples wanted in each set, at least 1. With too few examples all sets shrink in proportion,
            but keep at least 1.

    Returns:
        The sets, in the order of `sizes`.

    Raises:
        DataError: A size is below 1, or there are fewer distinct examples than sets.
    """
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"The {name} set is to have {size} examples: ask for at least 1.")
    by_group = sorted(examples, key=lambda example: example.group or "")
    distinct = {hashlib.sha256(f"{seed} ".encode() + _canonical(example)).digest(): example for example in by_group}
    shuffled = [distinct[key] for key in sorted(distinct)]
    if len(shuffled) < len(sizes):
        raise DataError(
            f"{len(shuffled)} distinct examples cannot be cut into {len(sizes)} sets ({', '.join(sizes)}): "
            f"give at least {len(sizes)}."
        )
    bounds = [0, *accumulate(_shrink(list(sizes.values()), len(shuffled)))]
    return {name: shuffled[start:end] for name, (start, end) in zip(sizes, pairwise(bounds), strict=True)}


def _shrink(sizes: list[int], available: int) -> list[int]:
    """Sizes as wanted, or shrunk in proportion to all that is available, at least 1 each."""
    if sum(sizes) <= available:
        return sizes
    given = [1] * len(sizes)
    for _ in range(available - len(sizes)):
        # The next one goes to the set that is furthest from its size.
        neediest = min(range(len(sizes)), key=lambda i: (given[i] + 1) / sizes[i])
        given[neediest] += 1
    return given


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of the examples' content in their order, in hexadecimal."""
    return hashlib.sha256(b"".join(_canonical(example) + b"\n" for example in examples)).hexdigest()


def _canonical(example: Example) -> bytes:
    """One line of ASCII that no other content has."""
    return json.dumps([example.prompt, example.completion, example.choices, example.answer]).encode("ascii")

"""Rows of files and tables as examples, by the names of their columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ftp_core.errors import DataError
from ftp_core.sources.columns import Columns
from ftp_core.sources.plain_text import windows
from ftp_core.text.data import Example

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

FORMS = (
    '"prompt" and "completion", '
    '"instruction", "output" and perhaps "input" (Alpaca), '
    '"question", "choices" and "answer" (multiple choice), '
    '"messages" (chats), "text", or the columns of ARC, HellaSwag, PIQA or WinoGrande'
)
# Where a choice goes into a sentence.
_GAP = re.compile(r"(?<!\w)_(?!\w)")


def examples_of(rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns | None = None) -> Iterator[Example]:
    """Examples of rows, each with the place that errors name; rows of plain text are cut into windows all together.

    Raises:
        DataError: A row has none of the forms; says where and why.
    """
    texts: list[str] = []
    for place, row in rows:
        try:
            if _is_text(row, columns):
                name = "text" if columns is None else columns.prompt
                texts.append("" if row[name] in (None, "") else _text(row, name))
            else:
                yield example_of(row, columns)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    yield from windows(texts)


def example_of(row: Mapping[str, Any], columns: Columns | None = None) -> Example:
    r"""The example of a row.

    - `{"prompt", "completion"}`: taken as they are, white space between the two included.
    - `{"instruction", "input", "output"}`: Alpaca's, put into its published template, which ends with "### Response:".
      The completion is a line break and the output, as in the text that Alpaca's dataset and most trainers use. Without
      an input (absent or empty), the template without input.
    - `{"question", "choices", "answer"}`: `answer` counts the choices from 0. As in lm-evaluation-harness for ARC, the
      prompt is `Question: {question}\nAnswer:` and a choice is a space and its text. WinoGrande and HellaSwag items
      of this form are treated alike, so figures on them do not compare with published ones.
    - `{"question", "choices": {"text", "label"}, "answerKey"}` and AI2's own files (ARC), `{"ctx_a", "ctx_b",
      "activity_label", "endings", "label"}` (HellaSwag), `{"goal", "sol1", "sol2", "label"}` (PIQA), and `{"sentence",
      "option1", "option2", "answer"}` (WinoGrande): prompts, choices and what is scored as in lm-evaluation-harness.
    - `{"messages"}`: a chat that ends with the assistant's message, the completion.

    With columns that are named, prompt and completion, or prompt and choices, are taken as they are, with a space
    between where there is no white space; a prompt with a gap, `_`, is filled as WinoGrande's. Each form may have a
    "group".

    Raises:
        DataError: It has none of the forms.
    """
    return replace(_content(row) if columns is None else _mapped(row, columns), group=_group(row))


def _is_text(row: Mapping[str, Any], columns: Columns | None) -> bool:
    if columns is not None:
        columns.check(row)
        return columns.is_text
    others = ("prompt", "instruction", "question", "messages", "ctx_a", "sentence", "goal")
    return "text" in row and not any(name in row for name in others)


def _content(row: Mapping[str, Any]) -> Example:
    if row.keys() >= {"prompt", "completion"}:
        return Example(_text(row, "prompt"), _text(row, "completion"))
    if row.keys() >= {"instruction", "output"}:
        return _alpaca(row)
    if row.keys() >= {"question", "answerKey"}:
        return _arc(row)
    if row.keys() >= {"question", "choices", "answer"}:
        return _asked(_text(row, "question"), _texts(row["choices"], '"choices"'), _index(row, "answer"))
    if row.keys() >= {"ctx_a", "ctx_b", "activity_label", "endings", "label"}:
        return _hellaswag(row)
    if row.keys() >= {"sentence", "option1", "option2", "answer"}:
        options = [_text(row, "option1"), _text(row, "option2")]
        return _filled(_text(row, "sentence"), options, _label(row, "answer", ["1", "2"], []))
    if row.keys() >= {"goal", "sol1", "sol2", "label"}:
        return _asked(_text(row, "goal"), [_text(row, "sol1"), _text(row, "sol2")], _label(row, "label", [], []))
    if "messages" in row:
        return _chat(row["messages"])
    keys = ", ".join(map(_quoted, list(row)[:8])) or "none"
    raise DataError(f"has the keys {keys}; expected {FORMS}; or name columns with --columns.")


def _mapped(row: Mapping[str, Any], columns: Columns) -> Example:
    columns.check(row)
    prompt = _text(row, columns.prompt)
    if not columns.choices:
        return Example(prompt, _separated(prompt, _text(row, columns.completion)))
    names: list[str] = []
    if len(columns.choices) > 1:
        choices = [_text(row, name) for name in columns.choices]
    else:
        held = row[columns.choices[0]]
        if isinstance(held, Mapping) and "text" in held:
            held, names = held["text"], [str(name) for name in held.get("label", ())]
        choices = _texts(held, _quoted(columns.choices[0]))
    answer = _label(row, columns.label, names, choices)
    if len(_GAP.findall(prompt)) == 1:
        return _filled(prompt, choices, answer)
    return _example(prompt, [_separated(prompt, choice) for choice in choices], answer)


def _alpaca(row: Mapping[str, Any]) -> Example:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    # Alpaca has an empty string; other files write null, or leave it out.
    if row.get("input") in (None, ""):
        prompt, message = _ALPACA_WITHOUT_INPUT.format(instruction=instruction), instruction
    else:
        given = _text(row, "input")
        prompt = _ALPACA_WITH_INPUT.format(instruction=instruction, input=given)
        message = f"{instruction}\n\n{given}"
    return Example(prompt, "\n" + output, turns=(("user", message),))


def _arc(row: Mapping[str, Any]) -> Example:
    question, choices = row["question"], row.get("choices")
    if isinstance(row["question"], Mapping):  # AI2's own files
        question, choices = row["question"].get("stem"), row["question"].get("choices")
    if isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        choices = {name: [choice.get(name) for choice in choices] for name in ("text", "label")}
    if not isinstance(choices, Mapping) or not isinstance(choices.get("label"), list):
        raise DataError('"choices" must have "text" and "label", as ARC has them.')
    texts = _texts(choices.get("text"), '"choices"')
    answer = _label(row, "answerKey", [str(name) for name in choices["label"]], [])
    return _asked(_check_text(question, '"question"'), texts, answer)


def _hellaswag(row: Mapping[str, Any]) -> Example:
    context = f"{_text(row, 'ctx_a')} {str(row['ctx_b'] or '').capitalize()}"
    endings = [_without_marks(ending) for ending in _texts(row["endings"], '"endings"')]
    prompt = _without_marks(f"{_text(row, 'activity_label')}: {context}")
    return _example(prompt, [f" {ending}" for ending in endings], _label(row, "label", [], []))


def _without_marks(text: str) -> str:
    # As lm-evaluation-harness does (its hellaswag/utils.py): brackets are artifacts of WikiHow.
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _asked(question: str, choices: Sequence[str], answer: int) -> Example:
    return _example(f"Question: {question}\nAnswer:", [f" {choice}" for choice in choices], answer)


def _filled(sentence: str, options: Sequence[str], answer: int) -> Example:
    """A sentence with a gap: what follows is scored behind each option (Trinh and Le 2018, arXiv 1806.02847)."""
    before, gap, behind = sentence.partition("_")
    if not gap or not behind.strip():
        raise DataError(f"{_quoted(sentence)} has no gap, a _ with text behind it, that the choices would fill.")
    scored = f" {behind.strip()}"
    return replace(_example(before, [option + scored for option in options], answer), scored=scored)


def _example(prompt: str, choices: Sequence[str], answer: int) -> Example:
    if not 0 <= answer < len(choices):
        raise DataError(f"the right choice is number {answer} from 0, but there are {len(choices)}.")
    return Example(prompt, choices[answer], tuple(choices), answer)


def _chat(messages: object) -> Example:
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise DataError('"messages" must be a list of objects with "role" and "content".')
    turns = []
    for number, one in enumerate(messages):
        place = f'"messages"[{number}]'
        turns.append(tuple(_check_text(one.get(key), f'"{key}" of {place}') for key in ("role", "content")))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise DataError('"messages" must end with a message of the assistant behind at least one other.')
    # The content alone: only the template of a model makes the text of it.
    prompt = "\n\n".join(content for _, content in turns[:-1])
    return Example(prompt, "\n\n" + turns[-1][1], turns=tuple((role, content) for role, content in turns[:-1]))


def _separated(prompt: str, text: str) -> str:
    return text if prompt[-1:].isspace() or text[:1].isspace() else f" {text}"


def _index(row: Mapping[str, Any], key: str) -> int:
    answer, choices = row[key], row["choices"]
    if type(answer) is not int or not 0 <= answer < len(choices):  # not isinstance: True is an int
        found = answer if type(answer) in (int, float) else f"a JSON {type_name(answer)}"
        raise DataError(f'"{key}" must be the index of the right choice, 0 to {len(choices) - 1}, but is {found}.')
    return answer


def _label(row: Mapping[str, Any], key: str, names: Sequence[str], texts: Sequence[str]) -> int:
    """Index of the right choice, from its index, its name, its letter or its text."""
    label = row[key]
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, str) and label in texts:
        return texts.index(label)
    if type(label) is int and str(label) in names:
        return names.index(str(label))
    if type(label) is int and not names and label >= 0:
        return label
    if isinstance(label, str) and not names and label.isascii() and label.isdigit() and len(label) < 4:
        return int(label)
    if isinstance(label, str) and not names and len(label) == 1 and "A" <= label.upper() <= "Z":
        return ord(label.upper()) - ord("A")
    expected = f"one of {', '.join(names)}" if names else "the index of the right choice from 0, its letter or its text"
    if label in ("", -1):
        raise DataError(f"{_quoted(key)} says no right choice ({label!r}): take a split whose answers are public.")
    raise DataError(f"{_quoted(key)} must be {expected}, but is {_quoted(str(label))}.")


def _group(row: Mapping[str, Any]) -> str | None:
    group = row.get("group")
    if group is None:
        return None
    if type(group) is int:  # not isinstance: True is an int
        return str(group)
    if not isinstance(group, str):
        found = group if type(group) is float else f"a JSON {type_name(group)}"
        raise DataError(f'"group" must be a text or a whole number, but is {found}.')
    return _check_text(group, '"group"').strip()


def _texts(value: object, name: str) -> list[str]:
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"{name} must be a list of at least 2 texts.")
    return [_check_text(text, f"{name}[{index}]") for index, text in enumerate(value)]


def _text(row: Mapping[str, Any], key: str) -> str:
    return _check_text(row[key], f'"{key}"')


def _check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, but is a JSON {type_name(value)}.")
    if not value.strip():
        raise DataError(f"{name} is empty; expected some text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write one half of a pair of \uD8xx\uDCxx; no tokenizer reads it
        raise DataError(f"{name} holds half a character (a lone \\ud800 to \\udfff); remove it.") from None
    return value


def type_name(value: object) -> str:
    """JSON's name of a value's type."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _quoted(key: str) -> str:
    return json.dumps(key if len(key) <= 40 else key[:37] + "...")

"""Samplers as text: `module:Class`, with arguments that are Python literals."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from search.errors import ConfigError

_CLASS = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*)\s*:\s*(?P<call>[^\W\d]\w*\s*(\(.*\))?)", re.DOTALL)
_EXPECTED = "expected module:Class, or module:Class(name=value, ...) with numbers, texts, lists and the like"
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class SamplerText:
    """A class in a module, and how to call it.

    Attributes:
        text: The text that names it.
        module: Name of the module.
        name: Name of the class.
        args: Arguments by position.
        kwargs: Arguments by name.
    """

    text: str
    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> SamplerText:
        """Read a text; nothing in it is executed.

        Raises:
            ConfigError: It names no class, or an argument is no literal.
        """
        found = _CLASS.fullmatch(text)
        if found is None:
            raise ConfigError(f"'{text}' names no sampler: {_EXPECTED}.")
        call = found["call"].strip()
        try:
            node = ast.parse(call if call.endswith(")") else f"{call}()", mode="eval").body
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                raise ConfigError(f"'{text}' names no sampler: {_EXPECTED}.")
            if any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("** is no argument")
            args = tuple(ast.literal_eval(arg) for arg in node.args)
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            raise ConfigError(f"The arguments of '{text}' cannot be read: {_EXPECTED}.") from error
        return cls(text, found["module"], node.func.id, args, kwargs)


def parts_of(names: str) -> list[str]:
    """The parts of a list with commas between; those within parentheses, brackets or quotes part nothing."""
    parts: list[str] = []
    open_ones: list[str] = []
    quote, start = "", 0
    for place, char in enumerate(names):
        if quote:
            if char == quote and names[place - 1] != "\\":
                quote = ""
        elif open_ones and char in "'\"":
            quote = char
        elif char in _CLOSING:
            open_ones.append(_CLOSING[char])
        elif open_ones and char == open_ones[-1]:
            open_ones.pop()
        elif char == "," and not open_ones:
            parts.append(names[start:place])
            start = place + 1
    return [part for part in map(str.strip, (*parts, names[start:])) if part]

"""Writes files so that nobody ever reads a part of one."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies.records.halves import Halves, to_json


def replace_file(path: Path, content: str) -> None:
    """Write a file so that whoever reads it sees the old one or the new one, and never a part."""
    # Two programs may write the same report at once: each needs a name of its own.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(content, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """The value in terms of JSON, which knows neither NaN nor infinity: they become null.

    Schedules whose halves skip apart, or keep keys and values, are lists by name.
    """
    if isinstance(value, Halves):
        return to_json(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)

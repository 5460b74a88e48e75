"""Lists models and data below the folders that the service may use, for a form to offer."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from ftp_core.loading.gguf_files import SUFFIX
from ftp_core.loading.model_source import NAMED
from ftp_core.sources.local import is_examples_file
from ftp_core.sources.source import DEMO, SELF
from search.errors import ConfigError
from search.service.rules.roots import checked_data, checked_model

# Most values of a field, and most entries of folders that are looked at for them.
MOST_OFFERED = 200
MOST_ENTRIES = 5000


def offered(roots: Sequence[Path]) -> dict[str, list[str]]:
    """Models and data that a new study may name, those nearest to the roots first, each as its absolute path."""
    models, data = list(NAMED), [DEMO, SELF]
    for folder, files, is_flat in _folders(roots):
        if "config.json" in files:
            models += _allowed("model", folder, roots)
            continue
        examples = [name for name in files if is_examples_file(folder / name)]
        data += _allowed("data", folder, roots) if is_flat and len(examples) > 1 else []
        for name in files:
            if name.endswith(SUFFIX):
                models += _allowed("model", folder / name, roots)
        for name in examples:
            data += _allowed("data", folder / name, roots)
        if min(len(models), len(data)) >= MOST_OFFERED:
            break
    return {"model": models[:MOST_OFFERED], "data": data[:MOST_OFFERED]}


def _folders(roots: Sequence[Path]) -> Iterator[tuple[Path, list[str], bool]]:
    """Folders, the names of their files, and whether that is all: level by level, without links and hidden ones."""
    waiting, n_seen = deque(roots), 0
    while waiting and n_seen < MOST_ENTRIES:
        folder = waiting.popleft()
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    n_seen += 1
                    if n_seen > MOST_ENTRIES:
                        break
                    if entry.name.startswith("."):
                        continue
                    (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
        except OSError:
            continue
        yield folder, sorted(files), not folders and n_seen <= MOST_ENTRIES
        # What lies in the folder of a model is the model's.
        waiting.extend(folder / name for name in sorted(folders) if "config.json" not in files)


def _allowed(field: str, path: Path, roots: Sequence[Path]) -> list[str]:
    """The path in a list, if a request may name it."""
    check = {"model": checked_model, "data": checked_data}[field]
    try:
        return [check(str(path), roots, False)]
    except ConfigError:
        return []

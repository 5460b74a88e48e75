"""Models in the cache of the Hugging Face Hub's client: by which name and revision others find them, too."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ftp_core.loading.reference import ModelReference

# Ids contain no "--".
_SNAPSHOT = re.compile(r"models--(?P<id>[^/]+)/snapshots/(?P<commit>[^/]+)")


def origin_of(name: str) -> ModelReference:
    """Returns the id and commit of a model whose directory is in the client's cache; another name as it is.

    A directory elsewhere is made absolute, so that it is found from wherever it is looked for.
    """
    if not name or not Path(name).is_dir():
        return ModelReference(name)
    folder, cache = Path(name).resolve(), Path(constants.HF_HUB_CACHE).resolve()
    if folder.is_relative_to(cache):
        found = _SNAPSHOT.fullmatch(folder.relative_to(cache).as_posix())
        if found is not None:
            return ModelReference(found["id"].replace("--", "/"), found["commit"])
    return ModelReference(str(folder))


def cached_commit(name: str) -> str | None:
    """Returns the commit to which the main branch of a model on the Hub is cached; None if it is not, or is no id."""
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent.name if isinstance(config, str) else None

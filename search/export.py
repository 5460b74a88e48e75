"""Writes what a search found as a directory: model configuration, schedule, router."""

from __future__ import annotations

import json
import os
from pathlib import Path

from transformers import AutoConfig

from ftp_core.models import resolve
from search.errors import SearchError
from studies import StudyStore


def export_study(store: StudyStore, name: str, directory: Path) -> list[Path]:
    """Write `config.json`, `schedule.json` and, if one was distilled, `router.safetensors`.

    Args:
        store: Where the study lives.
        name: Its name.
        directory: Where to write; made if missing.

    Returns:
        The files written.

    Raises:
        SearchError: The study has no chosen schedule yet, or the directory is a file.
    """
    study = store.study(name)
    if study.chosen_trial is None:
        raise SearchError(
            f"Study {name!r} has no chosen schedule yet: finish its search with `ftp-search resume {name}`."
        )
    if directory.exists() and not directory.is_dir():
        raise SearchError(f"{directory} is a file: name a directory to export to.")
    source = resolve(str(study.config["model"]))
    config = AutoConfig.from_pretrained(source)
    trial = store.trial(name, study.chosen_trial)
    router = store.latest_router(name)
    schedule = {
        "schedule": list(trial.schedule),
        "overall_sparsity": trial.overall_sparsity,
        "study": name,
        "trial": trial.number,
        "model": study.config["model"],
        "model_fingerprint": study.facts.get("model_fingerprint"),
        "router": None if router is None else {"file": "router.safetensors", "sha256": router.sha256},
    }
    files = {
        "config.json": config.to_json_string().encode(),
        "schedule.json": (json.dumps(schedule, indent=2) + "\n").encode(),
    }
    if router is not None:
        files["router.safetensors"] = router.weights
    directory.mkdir(parents=True, exist_ok=True)
    for filename, content in files.items():
        partial = directory / f".{filename}.partial"
        partial.write_bytes(content)
        os.replace(partial, directory / filename)
    return [directory / filename for filename in files]

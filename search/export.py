"""Writes what a study found as a pruned model that loads like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftp_core.causal_lm import FTPForCausalLM
from ftp_core.models import load_published
from ftp_core.routers import Router, StaticRouter, router_from_bytes
from ftp_core.saving import check_directory, replacing
from search.errors import SearchError
from studies import StudyStore
from studies.objectives import COSTS


def export_study(store: StudyStore, name: str, directory: Path, include_base: bool = True) -> list[Path]:
    """Write the pruned model with its tokenizer, and `schedule.json`, which says where it comes from.

    `ftp_core.FTPForCausalLM.from_pretrained(directory)` loads it.

    Args:
        store: Where the study lives.
        name: Its name.
        directory: Where to write; made if missing.
        include_base: Whether to write the dense model's weights, too, or only where they lie.

    Returns:
        The files written.

    Raises:
        SearchError: The study has no chosen schedule yet.
        CoreError: The directory is a file or holds another model, or the model cannot be loaded.
    """
    study = store.study(name)
    if study.chosen_trial is None:
        raise SearchError(
            f"Study {name!r} has no chosen schedule yet: finish its search with `ftp-search resume {name}`."
        )
    check_directory(directory)
    trial = store.trial(name, study.chosen_trial)
    run = None if trial.router is None else store.router_runs(name)[trial.router]
    router: Router = StaticRouter() if run is None else router_from_bytes(run.weights).eval()
    model, tokenizer = load_published(str(study.config["model"]))
    # As it was when the study ran: a system turn is a number of tokens then.
    keep_first = int(study.facts.get("keep_first", 0))
    pruned = FTPForCausalLM.from_dense(model, trial.schedule, router, keep_first=keep_first)
    origin: dict[str, Any] = {
        "schedule": list(trial.schedule),
        "overall_sparsity": trial.overall_sparsity,
        "keep_first": keep_first,
        # As the search knew them: latency is predicted.
        "objectives": dict(zip(study.objectives, trial.values or (), strict=False)),
        "costs": {cost: trial.metrics[cost] for cost in COSTS if cost in trial.metrics},
        "study": name,
        "trial": trial.number,
        "model": study.config["model"],
        "model_fingerprint": study.facts.get("model_fingerprint"),
        "router": None if run is None else {"kind": router.kind, "sha256": run.sha256},
    }
    with replacing(directory) as partial:
        pruned.save_pretrained(partial, include_base=include_base)
        tokenizer.save_pretrained(partial)
        (partial / "schedule.json").write_text(json.dumps(origin, indent=2) + "\n")
        names = sorted(path.name for path in partial.iterdir())
    return [directory / name for name in names]

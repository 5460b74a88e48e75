"""The commands that go on with a study: `resume` and `distill`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from search.cli.options import AsJson, Debug, Quiet, Storage, StudyName, Track
from search.cli.stages import continue_study
from search.config.run_config import DEFAULT_STORAGE, SETTINGS, RunConfig
from search.pipeline.opening import continued, resumed
from search.pipeline.resume_settings import at_target
from search.progress.views import make_view
from search.startup import ends_at_once
from studies import StudyStore, front

# Settings that `distill` takes: of the training, and of places that have changed.
DISTILL_SETTINGS = ("router_steps", "seed", "model", "data", "out")


def resume(
    name: StudyName,
    settings: Mapping[str, Any],
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure", help="Measure the latency profile again, predict all trials anew, and select again."
        ),
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue a study that was stopped, or a finished one with more trials; nothing that has finished is done again.

    Example: ftp-search resume mine --trials 1000
    """
    with StudyStore(storage, create=False) as store:
        study, config = resumed(store, name, settings, remeasure)
        opening = continued(store, study, config, make_view(quiet, track), settings, ends_at_once)
        continue_study(lambda pipeline, report: pipeline.run(report, remeasure), opening, store, name, as_json)


def distill(
    name: StudyName,
    settings: Mapping[str, Any],
    target_sparsity: Annotated[
        float | None,
        typer.Option(
            "--target-sparsity",
            metavar="X",
            help="Choose the front's best schedule at this overall sparsity first; it must have one.  "
            f"[{SETTINGS['target_sparsity'].range}]",
            show_default="as chosen",
        ),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Distil a new router on the study's chosen schedule, and compare it with others.

    Example: ftp-search distill mine --target-sparsity 0.3 --router-steps 200
    """
    moved = dict(settings)
    training = {field: moved.pop(field, None) for field in ("router_steps", "seed")}
    given = {**training, "target_sparsity": target_sparsity}
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        RunConfig.stored(study.config, **{key: value for key, value in given.items() if value is not None})
        if target_sparsity is not None:
            # Refused before anything is loaded.
            at_target(front(store.trials.of(name)), target_sparsity, name)
        config = RunConfig.stored(study.config, **moved)
        opening = continued(store, study, config, make_view(quiet, track), loading=ends_at_once)
        continue_study(
            lambda pipeline, report: pipeline.distill_only(
                training["router_steps"], training["seed"], target_sparsity, report
            ),
            *(opening, store, name, as_json),
        )

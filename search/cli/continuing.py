"""The commands that go on with a study: `resume` and `distill`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from search.cli.options import AsJson, Debug, MovedData, MovedModel, Out, Quiet, Storage, StudyName, Track
from search.cli.settings import setting_help
from search.cli.stages import Stage, continue_study
from search.config.file import anchored
from search.config.run_config import DEFAULT_STORAGE, SETTINGS, RunConfig
from search.config.setting import option
from search.errors import ConfigError
from search.pipeline.early_checks import check_where, check_writable
from search.pipeline.resume_settings import at_target, check_changes
from search.progress.views import make_view
from search.startup import ends_at_once
from studies import StudyRecord, StudyStore, front


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
        study = store.studies.get(name)
        config = RunConfig.stored(study.config, **settings)
        check_changes(study, store.trials.of(name), config, settings)
        if remeasure and not config.predicts_latency:
            raise ConfigError(
                f"--remeasure measures latency, but study {name!r} predicts none: it trades KL against {config.cost}, "
                "without --max-latency-ms. Leave the option out."
            )
        _go_on(
            lambda pipeline, report: pipeline.run(report, remeasure),
            *(store, study, config, quiet, track, as_json),
            settings,
        )


def distill(
    name: StudyName,
    router_steps: Annotated[
        int | None,
        typer.Option("--router-steps", metavar="N", help=setting_help("router_steps"), show_default="as begun"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="S",
            help=f"Seed of the training.  [{SETTINGS['seed'].range}]",
            show_default="as begun",
        ),
    ] = None,
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
    model: MovedModel = None,
    data: MovedData = None,
    storage: Storage = DEFAULT_STORAGE,
    out: Out = None,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Distil a new router on the study's chosen schedule, and compare it with others.

    Example: ftp-search distill mine --target-sparsity 0.3 --router-steps 200
    """
    given = {"router_steps": router_steps, "seed": seed, "target_sparsity": target_sparsity}
    places = {"model": model, "data": data, "out": None if out is None else str(out)}
    moved = {field: place for field, place in places.items() if place is not None}
    moved = anchored(moved, ("data", "out"), Path.cwd(), option)
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        RunConfig.stored(study.config, **{key: value for key, value in given.items() if value is not None})
        if target_sparsity is not None:
            # Refused before anything is loaded.
            at_target(front(store.trials.of(name)), target_sparsity, name)
        _go_on(
            lambda pipeline, report: pipeline.distill_only(router_steps, seed, target_sparsity, report),
            *(store, study, RunConfig.stored(study.config, **moved), quiet, track, as_json),
        )


def _go_on(
    stage: Stage,
    store: StudyStore,
    study: StudyRecord,
    config: RunConfig,
    quiet: bool,
    track: str,
    as_json: bool,
    asked: Collection[str] = (),
) -> None:
    """Runs stages of an existing study's pipeline with a new configuration."""
    store.check_writable()
    check_writable(config.folder(study.name))
    check_where(config)
    view = make_view(quiet, track)
    with ends_at_once():
        # They load torch and transformers.
        from search.pipeline.create import reopened

    continue_study(stage, lambda lease: reopened(store, study, config, lease, view, asked), store, study.name, as_json)

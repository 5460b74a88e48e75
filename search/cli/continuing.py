"""The commands that go on with a study: `resume` and `distill`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

import typer

from search.cli.options import AsJson, Debug, Quiet, Storage, StudyName, Track
from search.cli.stages import Stage, continue_study
from search.config.run_config import DEFAULT_STORAGE, SETTINGS, RunConfig
from search.errors import ConfigError
from search.pipeline.early_checks import check_where, check_writable
from search.pipeline.resume_settings import at_target, check_changes
from search.progress.views import make_view
from search.startup import ends_at_once
from studies import StudyRecord, StudyStore, front

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
        _go_on(
            lambda pipeline, report: pipeline.distill_only(
                training["router_steps"], training["seed"], target_sparsity, report
            ),
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

"""The commands that begin a study: `run` and `search`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.options import AsJson, ConfigFile, Debug, Name, Overwrite, Quiet, Storage, Track
from search.cli.stages import Stage, continue_study
from search.cli.sweep import go_through
from search.config.file import configured
from search.config.run_config import DEFAULT_STORAGE, RunConfig
from search.config.study_name import check_study_name
from search.config.sweep_plan import repeated
from search.errors import ConfigError
from search.pipeline.early_checks import check_writable
from search.pipeline.opening import begun, opened
from search.progress.views import make_view
from search.startup import ends_at_once

if TYPE_CHECKING:
    from search.progress.progress_view import ProgressView

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Estimate time and memory by a few evaluations, and begin nothing."),
]
Repeats = Annotated[
    int,
    typer.Option(
        "--repeats",
        metavar="K",
        help="Run everything with K seeds, from --seed on, as studies NAME-s0, NAME-s1, ..., and compare them.  [x>=1]",
    ),
]


def run_command(
    *,
    name: Name = "study",
    config: ConfigFile = None,
    repeats: Repeats = 1,
    settings: Mapping[str, Any],
    storage: Storage = DEFAULT_STORAGE,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Search schedules, distil routers, search again with them, measure, select, write the pruned model and a report.

    Example: ftp-search run --name mine --model ./my-llama --data train.jsonl --target-sparsity 0.3
    """
    check_study_name(name, "--name")
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}: expected at least 1.")
    chosen = configured(config, settings)
    check_writable(chosen.folder(name))
    view = make_view(quiet, "" if dry_run else track)
    if dry_run:
        _foresee(chosen, storage, view, as_json, repeats=repeats)
        return
    if repeats == 1:
        _begin(lambda pipeline, report: pipeline.run(report), name, chosen, storage, overwrite, view, as_json)
        return
    go_through(repeated(name, chosen, repeats), storage, view, quiet, as_json, debug, overwrite)


def search_command(
    *,
    name: Name = "study",
    config: ConfigFile = None,
    settings: Mapping[str, Any],
    storage: Storage = DEFAULT_STORAGE,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Search schedules only; `resume` goes on with the other stages.

    Example: ftp-search search --name mine --trials 500 --workers 4
    """
    check_study_name(name, "--name")
    chosen = configured(config, settings)
    check_writable(chosen.folder(name))
    view = make_view(quiet, "" if dry_run else track)
    if dry_run:
        _foresee(chosen, storage, view, as_json, search_only=True)
        return
    _begin(lambda pipeline, _: pipeline.search_only(), name, chosen, storage, overwrite, view, as_json)


def _begin(
    stage: Stage, name: str, config: RunConfig, storage: str, overwrite: bool, view: ProgressView, as_json: bool
) -> None:
    """Creates a study and runs stages of its pipeline."""
    with begun(name, config, storage, view, overwrite, ends_at_once) as (store, opening):
        continue_study(stage, opening, store, name, as_json)


def _foresee(
    config: RunConfig, storage: str, view: ProgressView, as_json: bool, repeats: int = 1, search_only: bool = False
) -> None:
    """Prints the estimate of a run; nothing is begun."""
    # They load torch and transformers.
    from search.pipeline.create import foreseeable, usable
    from search.pipeline.estimate import estimate_lines, estimate_run
    from search.stages.stage_states import all_stages

    config = usable(config)
    stages = ["search"] if search_only else all_stages(config)
    with opened(storage) as store:
        expected = estimate_run(config, foreseeable(config, store, view), store, stages, view)
    if as_json:
        print(json.dumps(expected.model_dump(mode="json") | {"repeats": repeats}))
        return
    each = [f"Each of {repeats} studies:"] if repeats > 1 else []
    print("\n".join([*each, *estimate_lines(expected)]))

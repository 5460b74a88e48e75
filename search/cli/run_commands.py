"""The commands that run a study, `run`, `search`, `resume`, `measure` and `distill`, and `config` for settings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from search.cli.options import AsJson, ConfigFile, Name, Note, Overwrite, Quiet, Storage, StudyName, Tags, Track
from search.cli.show import describe_study
from search.cli.sweep import go_through
from search.cli.tables import print_results, print_verdict
from search.config.file import config_text, configured
from search.config.labels import checked_labels
from search.config.run_config import DEFAULT_STORAGE, SETTINGS, RunConfig
from search.config.setting import option
from search.config.study_name import checked_study_name, resume_command
from search.config.sweep_plan import repeated
from search.errors import ConfigError
from search.pipeline.early_checks import check_writable
from search.pipeline.opening import Opening, begun, continued, opened, resumed
from search.pipeline.resume_settings import asking_for, check_distill
from search.progress.views import make_view
from search.reports import write_reports
from search.startup import INTERRUPTED, ends_at_once
from studies import StudiesError, StudyStore, front
from studies.records.confirmed import as_confirmed

if TYPE_CHECKING:
    from search.pipeline.pipeline import Pipeline, Report
    from search.progress.progress_view import ProgressView

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Estimate time and memory by a few evaluations, and begin nothing.")
]
Repeats = Annotated[
    int,
    typer.Option(
        "--repeats",
        metavar="K",
        help="Run everything with K seeds, from --seed on, as studies NAME-s0, NAME-s1, ..., and compare them.  [x>=1]",
    ),
]

# Settings that `measure` takes: of places that have changed.
MEASURE_SETTINGS = ("model", "revision", "adapter", "data", "out")
# Settings that `distill` takes: of the training, and of places that have changed.
DISTILL_SETTINGS = ("router_steps", "seed", "model", "revision", "adapter", "data", "out")


def _at_target(field: str, where: str) -> Any:
    """An option of `distill` that chooses a schedule first."""
    return typer.Option(
        option(field),
        metavar="X",
        help=f"Choose the front's best schedule {where} first; it must have one.  [{SETTINGS[field].range}]",
        show_default="as chosen",
    )


def run_command(
    *,
    name: Name = "study",
    config: ConfigFile = None,
    repeats: Repeats = 1,
    settings: Mapping[str, Any],
    tag: Tags = None,
    note: Note = None,
    storage: Storage = DEFAULT_STORAGE,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search schedules, distil routers, search again with them, measure, select, write the pruned model and a report.

    Example: ftp-search run --name mine --model ./my-llama --data train.jsonl --target-sparsity 0.3
    """
    name = checked_study_name(name, "--name")
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}: expected at least 1.")
    chosen, labels = configured(config, settings), checked_labels(tag or (), note or "")
    check_writable(chosen.folder(name))
    view = make_view(quiet, "" if dry_run else track)
    if dry_run:
        _foresee(chosen, storage, view, as_json, repeats=repeats)
    elif repeats > 1:
        go_through(repeated(name, chosen, repeats), storage, view, quiet, as_json, overwrite, labels)
    else:
        with begun(name, chosen, storage, view, overwrite, ends_at_once, labels) as (store, opening):
            _go_on(lambda pipeline, report: pipeline.run(report), opening, store, name, as_json)


def search_command(
    *,
    name: Name = "study",
    config: ConfigFile = None,
    settings: Mapping[str, Any],
    tag: Tags = None,
    note: Note = None,
    storage: Storage = DEFAULT_STORAGE,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search schedules only; `resume` goes on with the other stages.

    Example: ftp-search search --name mine --trials 500 --workers 4
    """
    name = checked_study_name(name, "--name")
    chosen, labels = configured(config, settings), checked_labels(tag or (), note or "")
    check_writable(chosen.folder(name))
    view = make_view(quiet, "" if dry_run else track)
    if dry_run:
        _foresee(chosen, storage, view, as_json, search_only=True)
        return
    with begun(name, chosen, storage, view, overwrite, ends_at_once, labels) as (store, opening):
        _go_on(lambda pipeline, _: pipeline.search_only(), opening, store, name, as_json)


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
) -> None:
    """Continue a study that was stopped, or a finished one with more trials; nothing that has finished is done again.

    Example: ftp-search resume mine --trials 1000
    """
    with StudyStore(storage, create=False) as store:
        study, config = resumed(store, name, settings, remeasure)
        opening = continued(store, study, config, make_view(quiet, track), settings, ends_at_once)
        _go_on(lambda pipeline, report: pipeline.run(report, remeasure), opening, store, name, as_json)


def measure(
    name: StudyName,
    trial: Annotated[
        list[int], typer.Option("--trial", metavar="N", help="Trial to measure; may be repeated.  [x>=0]")
    ],
    settings: Mapping[str, Any],
    select: Annotated[
        bool, typer.Option("--select", help="Select it, test and export it, whatever the rules select.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure trials of a finished study on validation items and on the clock, beside the points of its front.

    What rests on that, from the selection to the report, is done again. It is `resume` with --also-measure and
    --select-trial.

    Example: ftp-search measure mine --trial 57
    Example: ftp-search measure mine --trial 57 --select
    """
    if select and len(trial) > 1:
        raise ConfigError(f"--select selects one trial, and --trial names {len(trial)}: name one.")
    with StudyStore(storage, create=False) as store:
        advice = f"`{resume_command(repr(store), name)}` goes on with it"
        asked = asking_for(store.studies.get(name), trial, select, advice)
    resume(name, {**settings, **asked}, storage=storage, track=track, quiet=quiet, as_json=as_json)


def distill(
    name: StudyName,
    settings: Mapping[str, Any],
    target_sparsity: Annotated[float | None, _at_target("target_sparsity", "at this overall sparsity")] = None,
    target_flops_saved: Annotated[
        float | None, _at_target("target_flops_saved", "with this share of the dense prefill's FLOPs saved")
    ] = None,
    target_speedup: Annotated[float | None, _at_target("target_speedup", "with this predicted speed-up")] = None,
    storage: Storage = DEFAULT_STORAGE,
    track: Track = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Distil a new router on the study's chosen schedule, and compare it with others.

    Example: ftp-search distill mine --target-flops-saved 0.3 --router-steps 200
    """
    moved = dict(settings)
    steps, seed = moved.pop("router_steps", None), moved.pop("seed", None)
    asked = {
        **{"router_steps": steps, "seed": seed, "target_sparsity": target_sparsity},
        **{"target_flops_saved": target_flops_saved, "target_speedup": target_speedup},
    }
    with StudyStore(storage, create=False) as store:
        study = store.studies.get(name)
        target = check_distill(study, front(as_confirmed(store.trials.of(name))), asked)
        config = RunConfig.stored(study.config, **moved)
        opening = continued(store, study, config, make_view(quiet, track), loading=ends_at_once)

        def stage(pipeline: Pipeline, report: Report) -> None:
            pipeline.distill_only(steps, seed, target, report)

        _go_on(stage, opening, store, name, as_json)


def config_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write; standard output if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a configuration file that explains every setting and gives its default.

    Example: ftp-search config run.yaml && ftp-search run --config run.yaml
    """
    if file is None:
        print(config_text(), end="")
        return
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"FILE is {str(file)!r}: expected a file in a folder that exists.")
    if not overwrite and os.path.lexists(file):
        raise ConfigError(f"{file} exists already: choose another name, or replace it with --overwrite.")
    file.write_text(config_text())
    print(f"wrote {file}")


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
    print("\n".join([*each, *estimate_lines(expected, config)]))


def _go_on(
    stage: Callable[[Pipeline, Report], None], opening: Opening, store: StudyStore, name: str, as_json: bool
) -> None:
    """Runs stages of a pipeline, then writes and shows the results."""
    written: list[Path] = []

    def report(folder: Path) -> Sequence[Path]:
        written[:] = write_reports(store, name, folder)
        return written

    try:
        with store.runs.lease(name) as lease:
            pipeline = opening(lease)
            stage(pipeline, report)
    except KeyboardInterrupt:
        try:
            with store.hurried():
                if store.studies.is_aside(name):
                    print(f"Stopped before anything was evaluated; study {name} stays as it was", file=sys.stderr)
                    raise typer.Exit(INTERRUPTED) from None
                kept = f"{store.trials.n_ended(name)} trials are kept"
        except StudiesError:
            kept = "What the database confirmed is kept"
        print(f"Stopped. {kept}; go on with: {resume_command(repr(store), name)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    folder = pipeline.config.folder(name)
    if not written:
        # A search alone writes none itself.
        report(folder)
    exported = folder / "model" if store.runs.has_finished(name, "export") else None
    description = describe_study(store, name)
    if as_json:
        files = {"written": [str(path) for path in written], "exported": exported and str(exported)}
        print(json.dumps(description | files))
        return
    console = Console(markup=False, highlight=False)
    print_results(console, description)
    for path in (*written, *filter(None, [exported])):
        console.print(f"wrote {path}", soft_wrap=True)
    print_verdict(console, description)

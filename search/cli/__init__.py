"""The command line: `ftp-search`."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# Before transformers is imported: silences its progress bars and advice.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported: on busy cores, threads that spin for milliseconds while they wait slow down those that they
# wait for; threads that sleep at once wake too late on quiet ones, as a block has many short products
# (`benchmarks/distillation_speed.py`).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from ftp_core.errors import CoreError
from search.cli.compare import compare_command
from search.cli.database_commands import db, export_studies, import_studies
from search.cli.log_level import LogLevel, is_debugging, set_log_level
from search.cli.options import AsJson, Note, Out, Storage, StudyName, Tags
from search.cli.profile import profile_command
from search.cli.prompt import PROMPT_SETTINGS, prompt_command
from search.cli.run_commands import (
    DISTILL_SETTINGS,
    MEASURE_SETTINGS,
    config_command,
    distill,
    measure,
    resume,
    run_command,
    search_command,
)
from search.cli.service import runner_command, serve_command, token
from search.cli.service_client import fetch_command, status_command, stop_command, submit_command, wait_command
from search.cli.settings import GroupedCommand, with_settings
from search.cli.show import OPTUNAS, describe_optuna_study, describe_study
from search.cli.solve import solve_command
from search.cli.sweep import sweep_command
from search.cli.tables import (
    print_labels,
    print_optuna_study,
    print_proposers,
    print_results,
    print_studies,
    print_verdict,
)
from search.config.labels import checked_note, checked_tags
from search.config.run_config import DEFAULT_STORAGE, OF_NEW_STUDIES, RESUMABLE, SUBMITTABLE, RunConfig
from search.errors import ConfigError, SearchError
from search.pipeline.early_checks import check_writable
from search.pipeline.resume_settings import COMPARE_SETTINGS, SOLVE_SETTINGS
from search.reports import write_reports
from search.startup import INTERRUPTED, ends_at_once
from studies import StudiesError, StudyStore
from studies.records.objectives import KL, reference_text, shown_volume, volume_unit
from studies.records.records import LeftAside

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Finds how many tokens each block of a transformer can skip, and at what loss of quality.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ftp-search {version('ftp-search')}")
        raise typer.Exit


@app.callback()
def _options(
    log_level: LogLevel = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may also follow the command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Runs before every command; `main` accepts `--debug` and `--log-level` after the command as well."""
    if log_level:
        set_log_level(log_level)


app.command("run", cls=GroupedCommand)(with_settings(run_command, OF_NEW_STUDIES))
app.command("search", cls=GroupedCommand)(with_settings(search_command, OF_NEW_STUDIES))
app.command("resume", cls=GroupedCommand)(with_settings(resume, RESUMABLE, show_default="as begun"))
app.command("measure")(with_settings(measure, MEASURE_SETTINGS, show_default="as begun"))
app.command("distill")(with_settings(distill, DISTILL_SETTINGS, show_default="as begun"))
app.command("prompt")(with_settings(prompt_command, PROMPT_SETTINGS, show_default="as begun"))
app.command("solve")(with_settings(solve_command, SOLVE_SETTINGS, show_default="as begun"))
app.command("compare")(with_settings(compare_command, COMPARE_SETTINGS, show_default="as begun"))
app.command("sweep")(sweep_command)
app.command("config")(config_command)
app.command("serve")(serve_command)
app.command("runner")(runner_command)
app.add_typer(token, name="token")
app.command("submit", cls=GroupedCommand)(with_settings(submit_command, SUBMITTABLE))
app.command("status")(status_command)
app.command("wait")(wait_command)
app.command("stop")(stop_command)
app.command("fetch")(fetch_command)


@app.command()
def workers(
    name: StudyName,
    number: Annotated[int, typer.Argument(metavar="N", min=1, help="New number of Ray workers.")],
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Change the number of workers of a study; a running search adapts within seconds.

    Example: ftp-search workers mine 8
    """
    with StudyStore(storage, create=False) as store:
        config = RunConfig.stored(store.studies.get(name).config, workers=number)
        store.studies.set_config(name, config.model_dump())
    print(f"{name}: {number} workers")


@app.command()
def report(name: StudyName, storage: Storage = DEFAULT_STORAGE, out: Out = None, as_json: AsJson = False) -> None:
    """Write the report of a study.

    Example: ftp-search report mine --out reports/mine
    """
    with StudyStore(storage, create=False) as store:
        folder = RunConfig.stored(store.studies.get(name).config).folder(name) if out is None else out
        check_writable(folder)
        written = [str(path) for path in write_reports(store, name, folder)]
    print(json.dumps({"written": written}) if as_json else "\n".join(f"wrote {path}" for path in written))


app.command("profile")(profile_command)
app.add_typer(db, name="db")
studies = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(studies, name="studies")
studies.command("import")(import_studies)
studies.command("export")(export_studies)


@studies.callback()
def list_studies(context: typer.Context, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """List the studies of a database, or copy them from or to an Optuna database.

    Example: ftp-search studies --json
    """
    if context.invoked_subcommand is not None:
        return
    with StudyStore(storage, create=False) as store:
        summaries, optunas = store.studies.summaries(), store.optuna.all()
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "name": s.name,
                "state": s.state.value,
                "trials": s.n_trials,
                "created_at": s.created_at.isoformat(),
                "model": s.model,
                "data": s.data,
                **asdict(s.labels),
            }
            for s in summaries
        ]
        unknown: dict[str, Any] = {**dict.fromkeys(("created_at", "model", "data", "sweep")), "tags": [], "note": ""}
        rows += [{"name": one.name, "state": OPTUNAS, "trials": one.n_ended, **unknown} for one in optunas]
        print(json.dumps(rows))
    else:
        print_studies(Console(markup=False, highlight=False), summaries, optunas)


@app.command()
def show(name: StudyName, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Show a study: stages, proposers, refinements, front, selected schedule and measurements.

    Example: ftp-search show mine --json
    """
    console = Console(markup=False, highlight=False)
    with StudyStore(storage, create=False) as store:
        alone = store.optuna.find(name)
        description = describe_study(store, name) if alone is None else describe_optuna_study(store, alone)
    if as_json:
        print(json.dumps(description))
        return
    if alone is not None:
        print_optuna_study(console, description)
        return
    pruned = f", {description['pruned_trials']} stopped early" if description["pruned_trials"] else ""
    console.print(f"study {name}: {description['state']}, {description['trials']} trials{pruned}")
    print_labels(console, description)
    print_verdict(console, description)
    aside = LeftAside(**description["left_aside"])
    if aside.total:
        console.print(str(aside))
    ablations = description["ablations"] or {}
    if ablations.get("evaluations"):
        console.print(
            f"{ablations['schedules']} of the trials are ablations on {ablations['fidelity']:.0%} of the search set, "
            f"and count as {ablations['evaluations']:.1f}"
        )
    for line in (description["fewer_items"], ablations.get("left_out")):
        if line:
            console.print(line, soft_wrap=True)
    foreseen = (description["estimate"] or {}).get("seconds", {})
    for stage in description["stages"]:
        took = "" if stage["seconds"] is None else f" after {stage['seconds']:.0f} s"
        expected = foreseen.get(stage["name"], 0.0)
        about = f", about {expected:.0f} s expected" if expected >= 1 else ""
        console.print(f"{stage['name']}: {stage['state']}{took}{about}")
    volume = description["hypervolume"]
    if volume is not None:
        objectives = description["objectives"]
        corner = reference_text(volume["reference"], objectives)
        scale = ", with KL as log(KL + 0.02)" if objectives[0] == KL else ""
        value = f"{shown_volume(volume['value'], objectives):.5g} {volume_unit(objectives)}".rstrip()
        console.print(f"hypervolume {value}, up to {corner}{scale}")
    blocks = description["blocks"]
    if blocks["reused"]:
        known = blocks["reused"] / (blocks["run"] + blocks["reused"])
        console.print(f"{known:.0%} of the block computations were known from other schedules")
    print_proposers(console, description)
    print_results(console, description)


@app.command()
def label(
    name: StudyName,
    tag: Tags = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take all tags away.")] = False,
    note: Note = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """Change the tags and the note of a study, and print them; --tag names all tags that it has from now on.

    Example: ftp-search label mine --tag paper --tag 1B --note "keys and values kept"
    """
    if tag and no_tags:
        raise ConfigError("--tag names tags, and --no-tags takes all away: give one of them.")
    tags = checked_tags(tag or ()) if tag or no_tags else None
    said = None if note is None else checked_note(note)
    with StudyStore(storage, create=False) as store:
        changes = tags is not None or said is not None
        labels = store.studies.label(name, tags, said) if changes else store.studies.get(name).labels
    if as_json:
        print(json.dumps({"name": name, **asdict(labels)}))
        return
    print_labels(Console(markup=False, highlight=False), asdict(labels))


@app.command()
def delete(name: StudyName, storage: Storage = DEFAULT_STORAGE) -> None:
    """Delete a study from the database; its files stay.

    Example: ftp-search delete mine
    """
    with StudyStore(storage, create=False) as store:
        store.delete_study(name)
    print(f"deleted {name}")


def export(
    name: StudyName,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to; created if missing.")],
    settings: Mapping[str, Any],
    storage: Storage = DEFAULT_STORAGE,
    trial: Annotated[
        int | None, typer.Option("--trial", metavar="N", help="Trial to write; the selected one if not given.  [x>=0]")
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Refer to the dense model's weights instead of copying them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another pruned model, or files of the same names.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the pruned model into a folder that transformers and lm-eval load.

    Options of the model say where it is by now, if it was moved; the study remembers them.

    Example: ftp-search export mine ./pruned
    Example: ftp-search export mine ./pruned-more --trial 57
    """
    with StudyStore(storage, create=False) as store:
        # Refuses a wrong name before torch and transformers are loaded.
        store.studies.get(name)
        with ends_at_once():
            from search.stages.export import export_study

        with Console(stderr=True).status(f"writing to {directory}"):
            paths = export_study(store, name, directory, not reference, overwrite, **settings, trial=trial)
        written = [str(path) for path in paths]
    print(json.dumps({"written": written}) if as_json else "\n".join(f"wrote {path}" for path in written))


app.command("export", cls=GroupedCommand)(with_settings(export, ("model", "revision", "adapter"), "as begun"))


def main() -> None:
    """Run the command line; errors are one line on standard error, with exit code 2 for wrong usage and 1 otherwise."""
    # SIGTERM, which schedulers send, stops a search as cleanly as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _with_own_options_first(sys.argv[1:])
    if not arguments:
        # Wrong usage, whose message is the help.
        app(args=["--help"], prog_name="ftp-search", standalone_mode=False)
        sys.exit(2)
    try:
        code = app(args=arguments, prog_name="ftp-search", standalone_mode=False)
    except (typer.TyperException, ConfigError) as error:
        _fail(getattr(error, "format_message", error.__str__)(), 2)
    except (SearchError, StudiesError, CoreError, OSError) as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        print("Stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (this is a defect; --debug shows where it happened)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _with_own_options_first(arguments: list[str]) -> list[str]:
    """The arguments with `--debug` and `--log-level` moved before the command."""
    first, rest, words = [], [], iter(arguments)
    for word in words:
        if word == "--debug" or word.startswith("--log-level="):
            first.append(word)
        elif word == "--log-level":
            first += [word, *islice(words, 1)]
        else:
            rest.append(word)
    return first + rest


def _fail(message: str, code: int) -> None:
    if is_debugging():
        traceback.print_exc()
    print(f"ftp-search: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)

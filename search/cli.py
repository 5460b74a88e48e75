"""The command line: `ftp-search`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# Before transformers is imported: its bars and advice would run between ours.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from ftp_core.errors import CoreError
from search.config import (
    DEFAULT_ROUTER_STEPS,
    DEFAULT_STORAGE,
    DEFAULT_TEST_ITEMS,
    DEFAULT_TRIALS,
    OBJECTIVES,
    RunConfig,
)
from search.description import describe_study
from search.errors import ConfigError, SearchError
from search.tables import print_front, print_measurements, print_studies
from studies import StudiesError, StudyState, StudyStore

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Finds how many tokens each transformer block may skip, and what that costs.",
)

Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="Database of studies.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where reports go.", show_default="./ftp-out/NAME")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
StudyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Name = Annotated[str, typer.Option("--name", help="Name of the new study.")]
Model = Annotated[str, typer.Option("--model", help="'demo', a local directory, or a Hugging Face id.")]
Data = Annotated[str, typer.Option("--data", help="'demo', or a JSONL file (see README).")]
Trials = Annotated[int, typer.Option("--trials", metavar="N", help="Schedules to evaluate.")]
MoreTrials = Annotated[
    int | None,
    typer.Option("--trials", metavar="N", help="New total of schedules to evaluate.", show_default="as begun"),
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Ray workers.", show_default="number of cores")
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Of proposals, data splits and router training.")]
Target = Annotated[
    float | None,
    typer.Option("--target-sparsity", metavar="X", help="Overall sparsity to search at.", show_default="the knee"),
]
RouterSteps = Annotated[int, typer.Option("--router-steps", metavar="N", help="Steps of the router's training.")]
TestItems = Annotated[int, typer.Option("--test-items", metavar="N", help="Items that reported figures rest on.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete a study of this name first.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def _options(debug: Debug = False) -> None:
    """Runs before every command; `--debug` is read in `main`, which also accepts it behind the command."""


def _new_study(store: StudyStore, name: str, config: RunConfig, overwrite: bool) -> None:
    if overwrite and any(summary.name == name for summary in store.summaries()):
        store.delete_study(name)
    store.create_study(name, config.model_dump(), OBJECTIVES)


def _checked_config(model: str, data: str, workers: int | None, **values: Any) -> RunConfig:
    """A configuration whose model and data are known to exist; nothing has been written yet."""
    from ftp_core.models import DEMO, resolve
    from search.workload import read_examples

    chosen = {} if workers is None else {"workers": workers}
    config = RunConfig.checked(
        model=model,
        # A study may be resumed from another directory.
        data=data if data == DEMO else str(Path(data).expanduser().resolve()),
        **chosen,
        **values,
    )
    source = resolve(model)
    read_examples(config.data, config.seed, config.sizes)
    return config if model == DEMO else config.model_copy(update={"model": source})


def _start(
    stage: Callable[[Any], None],
    name: str,
    storage: str,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    config: RunConfig,
) -> None:
    """Create a study and run stages of its pipeline."""
    if not name.strip() or "/" in name:
        raise ConfigError(f"--name is {name!r}: expected a name without slashes.")
    created = _sqlite_file(storage)
    existed = created is None or created.exists()
    store = StudyStore(storage)
    try:
        _new_study(store, name, config, overwrite)
    except BaseException:
        store.close()
        if not existed and created is not None:
            created.unlink(missing_ok=True)
        raise
    with store:
        _continue(stage, store, name, storage, out, as_json)


def _sqlite_file(storage: str) -> Path | None:
    return Path(storage.removeprefix("sqlite:///")) if storage.startswith("sqlite:///") else None


def _continue(
    stage: Callable[[Any], None], store: StudyStore, name: str, storage: str, out: Path | None, as_json: bool
) -> None:
    """Run stages of an existing study's pipeline, then show and write what there is."""
    from search.pipeline import Pipeline
    from search.progress import ProgressView

    view = ProgressView(Console(stderr=True))
    try:
        stage(Pipeline(store, name, view))
    except KeyboardInterrupt:
        where = "" if storage == DEFAULT_STORAGE else f" --storage {storage!r}"
        print(
            f"Stopped. {store.n_trials(name)} trials are kept; go on with: ftp-search resume {name}{where}",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    written = _report(store, name, out)
    description = describe_study(store, name)
    if as_json:
        print(json.dumps(description | {"written": [str(path) for path in written]}))
        return
    console = Console()
    print_front(console, description)
    print_measurements(console, description)
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


def _report(store: StudyStore, name: str, out: Path | None) -> list[Path]:
    from dashboards import ReportData, write_report

    data = ReportData(
        study=store.study(name),
        trials=store.trials(name),
        measurements=store.measurements(name),
        router_runs=store.router_runs(name),
    )
    return list(write_report(data, out or Path("ftp-out") / name))


def _new_study_command(stage: Callable[[Any], None]) -> Callable[..., None]:
    """`run` and `search` take the same options and differ in the stages that they go through."""

    def command(
        name: Name = "study",
        model: Model = "demo",
        data: Data = "demo",
        trials: Trials = DEFAULT_TRIALS,
        workers: Workers = None,
        seed: Seed = 0,
        target_sparsity: Target = None,
        router_steps: RouterSteps = DEFAULT_ROUTER_STEPS,
        test_items: TestItems = DEFAULT_TEST_ITEMS,
        storage: Storage = DEFAULT_STORAGE,
        out: Out = None,
        overwrite: Overwrite = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        config = _checked_config(
            model,
            data,
            workers,
            trials=trials,
            seed=seed,
            target_sparsity=target_sparsity,
            router_steps=router_steps,
            test_items=test_items,
        )
        _start(stage, name, storage, out, overwrite, as_json, config)

    return command


app.command(
    "run",
    help="""Search schedules, distil a router on the best, measure the front, write a report.

    Example: ftp-search run --name mine --model ./my-llama --data train.jsonl --target-sparsity 0.3
    """,
)(_new_study_command(lambda pipeline: pipeline.run()))
app.command(
    "search",
    help="""Search schedules only; `resume` goes on with distillation and measurement.

    Example: ftp-search search --name mine --trials 500 --workers 4
    """,
)(_new_study_command(lambda pipeline: pipeline.search_only()))


@app.command()
def resume(
    name: StudyName,
    trials: MoreTrials = None,
    workers: Workers = None,
    storage: Storage = DEFAULT_STORAGE,
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue a study that was stopped, or a finished one with more trials.

    Example: ftp-search resume mine --trials 1000
    """
    with StudyStore(storage, create=False) as store:
        changes = {key: value for key, value in {"trials": trials, "workers": workers}.items() if value is not None}
        config = RunConfig.checked(**(dict(store.study(name).config) | changes))
        store.set_config(name, config.model_dump())
        _continue(lambda pipeline: pipeline.run(), store, name, storage, out, as_json)


@app.command()
def distill(
    name: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Distil a new router on the study's chosen schedule, and measure it.

    Example: ftp-search distill mine
    """
    with StudyStore(storage, create=False) as store:
        _continue(lambda pipeline: pipeline.distill_only(), store, name, storage, out, as_json)


@app.command()
def report(
    name: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the report of a study again.

    Example: ftp-search report mine --out reports/mine
    """
    with StudyStore(storage, create=False) as store:
        written = [str(path) for path in _report(store, name, out)]
    print(json.dumps({"written": written}) if as_json else "\n".join(f"wrote {path}" for path in written))


@app.command()
def studies(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the studies of a database.

    Example: ftp-search studies --json
    """
    with StudyStore(storage, create=False) as store:
        summaries = store.summaries()
    if as_json:
        rows = [
            {
                "name": s.name,
                "state": s.state.value,
                "trials": s.n_trials,
                "created_at": s.created_at.isoformat(),
                "model": s.model,
                "data": s.data,
            }
            for s in summaries
        ]
        print(json.dumps(rows))
    else:
        print_studies(Console(), summaries)


@app.command()
def show(name: StudyName, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show a study: its state, its front, and what was measured.

    Example: ftp-search show mine --json
    """
    with StudyStore(storage, create=False) as store:
        description = describe_study(store, name)
    if as_json:
        print(json.dumps(description))
        return
    console = Console()
    console.print(f"study {name}: {description['state']}, {description['trials']} trials", highlight=False)
    print_front(console, description)
    print_measurements(console, description)


@app.command()
def delete(name: StudyName, storage: Storage = DEFAULT_STORAGE, debug: Debug = False) -> None:
    """Delete a study with everything it remembers; reports on disk stay.

    Example: ftp-search delete mine
    """
    with StudyStore(storage, create=False) as store:
        if store.study(name).state is StudyState.RUNNING:
            print(f"note: study {name!r} was marked as running", file=sys.stderr)
        store.delete_study(name)
    print(f"deleted {name}")


@app.command()
def export(
    name: StudyName,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if missing.")],
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the model's configuration, the chosen schedule and the router into a directory.

    Example: ftp-search export mine ./pruned
    """
    from search.export import export_study

    with StudyStore(storage, create=False) as store:
        written = [str(path) for path in export_study(store, name, directory)]
    print(json.dumps({"written": written}) if as_json else "\n".join(f"wrote {path}" for path in written))


def main() -> None:
    """Run the command line; errors are one line on standard error, with exit code 2 for wrong usage and 1 otherwise."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        code = app(args=arguments, prog_name="ftp-search", standalone_mode=False)
    except (typer.TyperException, ConfigError) as error:
        _fail(error, getattr(error, "format_message", error.__str__)(), 2, debug)
    except (SearchError, StudiesError, CoreError, OSError) as error:
        _fail(error, str(error), 1, debug)
    except (KeyboardInterrupt, typer.Abort):
        print("Stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        message = f"{type(error).__name__}: {error} (this is a defect; --debug shows where it happened)"
        _fail(error, message, 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception, message: str, code: int, debug: bool) -> None:
    if debug:
        raise error
    print(f"ftp-search: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)

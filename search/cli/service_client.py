"""The commands for a service on another machine: `submit`, `status`, `wait`, `stop` and `fetch`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from search.cli.options import AsJson, ConfigFile, Name, Note, Quiet, StudyName, Tags
from search.config.file import configured

DEFAULT_SERVER = "http://127.0.0.1:8000"
# Not an option: all users of the machine can read command lines.
TOKEN_VARIABLE = "FTP_SEARCH_TOKEN"

Server = Annotated[
    str, typer.Option("--server", metavar="URL", envvar="FTP_SEARCH_SERVER", help="Address of the service.")
]


def submit_command(
    *,
    name: Name,
    server: Server = DEFAULT_SERVER,
    config: ConfigFile = None,
    settings: Mapping[str, Any],
    tag: Tags = None,
    note: Note = None,
    as_json: AsJson = False,
) -> None:
    """Submit a study to a service. Paths are those of its machine; a token is read from FTP_SEARCH_TOKEN.

    Example: ftp-search submit --name mine --trials 500 --server http://gpu-box:8000
    """
    # The service has its own defaults.
    chosen = configured(config, settings).model_dump(exclude_unset=True, exclude={"version"})
    with _client(server) as client:
        _show(client.create(name, tags=tag or (), note=note or "", **chosen), as_json)


def status_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the study; all if not given.")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
) -> None:
    """Show the state of a service's studies.

    Example: ftp-search status mine --server http://gpu-box:8000
    """
    with _client(server) as client:
        if name is not None:
            _show(client.study(name), as_json)
            return
        found = list(client.studies())
        if not as_json:
            # Running studies are shown with their stage.
            found = [client.study(one["name"]) if one["state"] == "running" else one for one in found]
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        _show(one, as_json=False)


def wait_command(
    name: StudyName,
    server: Server = DEFAULT_SERVER,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="S", min=0.0, help="Most seconds to wait.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Wait until a service's study ends; exit code 1 unless it finished.

    Example: ftp-search wait mine --server http://gpu-box:8000
    """
    console = Console(stderr=True, markup=False, highlight=False, quiet=quiet)
    with _client(server) as client, console.status("waiting") as shown:
        shown_stage: list[tuple[str, str]] = []

        def say(study: Mapping[str, Any]) -> None:
            shown.update(_line(study))
            # Without a terminal, each stage is one line.
            stage = (str(study["state"]), _stage(study))
            if not console.is_terminal and shown_stage != [stage]:
                shown_stage[:] = [stage]
                console.print(_line(study), soft_wrap=True)

        study = client.wait(name, timeout, say)
    _show(study, as_json)
    if study["state"] != "finished":
        raise typer.Exit(1)


def stop_command(name: StudyName, server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Stop a service's study; all results are kept, and it can be resumed.

    Example: ftp-search stop mine --server http://gpu-box:8000
    """
    with _client(server) as client:
        _show(client.stop(name), as_json)


def fetch_command(
    name: StudyName,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New or empty folder to write to.")],
    server: Server = DEFAULT_SERVER,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fetch the report of a service's study and its pruned model, if there is one.

    Example: ftp-search fetch mine ./mine --server http://gpu-box:8000
    """
    from search.fetching import fetch_study

    console = Console(stderr=True, markup=False, highlight=False, quiet=quiet)
    with _client(server) as client, console.status(f"fetching {name}") as shown:
        fetched = fetch_study(client, name, directory, lambda what: shown.update(f"fetching {what}"))
    written = [str(path) for path in fetched.files]
    if as_json:
        print(json.dumps({"written": written, "without_model": fetched.without_model}))
        return
    print("\n".join(f"wrote {path}" for path in written))
    if fetched.without_model is not None:
        print(f"No model: {fetched.without_model}", file=sys.stderr)


def _client(server: str) -> Any:
    from search.client import Client

    return Client(server, os.environ.get(TOKEN_VARIABLE))


def _show(study: Mapping[str, Any], as_json: bool) -> None:
    print(json.dumps(study) if as_json else _line(study))


def _line(study: Mapping[str, Any]) -> str:
    """State, stage and number of trials of a study."""
    stage = _stage(study)
    parts = [str(study["state"]), *([stage] if stage else []), _trials(study, stage)]
    error = (study.get("run") or {}).get("error")
    return f"{study['name']}: {', '.join(parts)}" + (f" ({error})" if error else "")


def _stage(study: Mapping[str, Any]) -> str:
    """Stage that a study is in or stopped in; empty if there is none or it is unknown."""
    stages = study.get("stages") or []
    latest = max(stages, key=lambda one: one["began_at"], default=None)
    return "" if latest is None or study["state"] == "finished" else str(latest["name"])


def _trials(study: Mapping[str, Any], stage: str) -> str:
    config = study.get("config") or {}
    total = config.get("trials")
    kind, _, number = stage.partition("-")
    if total is not None and kind == "refine" and number.isdecimal():
        total += int(number) * config.get("refine_trials", 0)
    searches = total is not None and (kind in ("search", "refine") or (not stage and study["state"] != "finished"))
    return f"{study['n_trials']} of {total} trials" if searches else f"{study['n_trials']} trials"

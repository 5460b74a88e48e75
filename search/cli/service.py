"""The commands of the service: `serve`, `worker`, `token`, and those that ask one that runs elsewhere."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from search.cli.grouped_help import GroupedCommand
from search.cli.log_level import LOG_VARIABLE, log_to_stderr
from search.cli.options import AsJson, ConfigFile, Debug, Storage, StudyName
from search.cli.settings import with_settings
from search.cli.stages import write_reports
from search.config import DEFAULT_OUT, DEFAULT_STORAGE
from search.config_file import SETTINGS, configured
from search.errors import ConfigError, SearchError
from search.evaluators.ray_address import check_address
from search.service.roots import Reach
from studies.service_store import ServiceStore
from studies.times import local_text
from studies.tokens import Role

DEFAULT_SERVER = "http://127.0.0.1:8000"
# How long requests wait for a database that is away: whoever asks is told so, and asks again.
_PATIENCE_S = 2.0

Roots = Annotated[
    list[Path] | None,
    typer.Option("--root", metavar="DIR", help="Folder below which studies may name files; may be repeated."),
]
Hub = Annotated[bool, typer.Option("--hub", help="Let studies name models of the Hugging Face Hub.")]
ServiceOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where reports and pruned models go.")]
Server = Annotated[
    str, typer.Option("--server", metavar="URL", envvar="FTP_SEARCH_SERVER", help="Address of the service.")
]
# No option: what stands on a command line, everybody on the machine can read.
TOKEN_VARIABLE = "FTP_SEARCH_TOKEN"

token = typer.Typer(rich_markup_mode=None, help="Add, list and remove the tokens of a service.")


def serve_command(
    storage: Storage = DEFAULT_STORAGE,
    host: Annotated[str, typer.Option("--host", help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Workers to start beside it.")] = 1,
    root: Roots = None,
    hub: Hub = False,
    out: ServiceOut = DEFAULT_OUT,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", metavar="HOST:PORT", help="Ray cluster of the workers started here.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option("--proxy", metavar="ADDRESS", help="Proxy whose word on where requests come from is taken."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let everybody in who reaches it, as long as there is no token.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve studies over HTTP, and run those that are submitted.

    Example: ftp-search serve --root /srv/models --root /srv/data
    """
    needs_extra()
    from search.service.dashboard import dashboard
    from search.service.serving import serve
    from search.service.settings import ServiceSettings, is_loopback

    log_to_stderr()
    command = [sys.executable, "-m", "search", "worker"]
    command += [] if ray_address is None else ["--ray-address", ray_address]
    reach = _reach(root, hub, out)
    command += [f"--root={one}" for one in reach.roots]
    command += [f"--out={reach.out}", *(["--hub"] if hub else [])] if reach.roots else []
    with ServiceStore(storage, patience_s=_PATIENCE_S) as store:
        settings = ServiceSettings(
            out=reach.out,
            roots=reach.roots,
            hub=hub,
            is_local=is_loopback(host),
            insecure=insecure,
        )
        serve(
            store,
            settings,
            host,
            port,
            workers,
            command,
            proxy,
            dashboard(settings),
            lambda line: print(line, flush=True),
        )


def worker_command(
    storage: Storage = DEFAULT_STORAGE,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="HOST:PORT", help="Ray cluster to work on; this machine if not given."),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Leave once no study waits.")] = False,
    root: Roots = None,
    hub: Hub = False,
    out: ServiceOut = DEFAULT_OUT,
    debug: Debug = False,
) -> None:
    """Run the studies that are submitted to a service, here or on any other machine that reaches its database.

    With --root, a study fails that names other files than below these folders, or writes elsewhere than there or below
    --out, or names a model of the Hub without --hub. Without, the worker opens whatever a study names.

    Example: ftp-search worker --storage postgresql+psycopg://user:password@host/studies
    """
    from search.service.worker import Worker
    from search.service.worker_processes import PARENT_VARIABLE

    check_address(ray_address)
    log_to_stderr()
    if LOG_VARIABLE not in os.environ:
        logging.getLogger("search.service").setLevel(logging.INFO)
    parent = os.environ.get(PARENT_VARIABLE)
    reach = _reach(root, hub, out) if root else None
    Worker(storage, write_reports, ray_address, None if parent is None else int(parent), reach).run(until_idle)


@token.command("add")
def add_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, or what it is for.")],
    role: Annotated[Role, typer.Option("--role", help="Read everything, or also begin, stop and delete studies.")],
    storage: Storage = DEFAULT_STORAGE,
    debug: Debug = False,
) -> None:
    """Add a token, and print its secret, which cannot be shown again.

    Example: ftp-search token add ada --role editor
    """
    with ServiceStore(storage) as store:
        print(store.add_token(name, role))


@token.command("list")
def list_tokens(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False, debug: Debug = False) -> None:
    """List tokens, without their secrets.

    Example: ftp-search token list
    """
    with ServiceStore(storage, create=False) as store:
        found = store.tokens()
    if as_json:
        rows = [{"name": one.name, "role": one.role, "created_at": one.created_at.isoformat()} for one in found]
        print(json.dumps(rows))
        return
    table = Table()
    for heading in ("name", "role", "created"):
        table.add_column(heading, overflow="fold")
    for one in found:
        table.add_row(one.name, one.role.value, local_text(one.created_at))
    Console(markup=False, highlight=False).print(table if found else "No tokens yet: ftp-search token add NAME")


@token.command("remove")
def remove_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token.")],
    storage: Storage = DEFAULT_STORAGE,
    debug: Debug = False,
) -> None:
    """Remove a token: nobody gets in with it any more, and browsers that did are signed out.

    Example: ftp-search token remove ada
    """
    with ServiceStore(storage, create=False) as store:
        store.remove_token(name)
    print(f"removed {name}")


def submit_command(
    *,
    name: Annotated[str, typer.Option("--name", help="Name of the new study.")],
    server: Server = DEFAULT_SERVER,
    config: ConfigFile = None,
    settings: Mapping[str, Any],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Submit a study to a service; paths are those of its machine. FTP_SEARCH_TOKEN holds the token, if one is needed.

    Example: ftp-search submit --name mine --trials 500 --server http://gpu-box:8000
    """
    # What is not given, the service decides.
    chosen = configured(config, settings).model_dump(exclude_unset=True, exclude={"version"})
    with _client(server) as client:
        _show(client.create(name, **chosen), as_json)


def status_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of the study; all if not given.")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say where a service's studies stand.

    Example: ftp-search status mine --server http://gpu-box:8000
    """
    with _client(server) as client:
        if name is not None:
            _show(client.study(name), as_json)
            return
        found = list(client.studies())
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        _show(one, as_json=False)


def wait_command(
    name: StudyName,
    server: Server = DEFAULT_SERVER,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="S", min=0.0, help="Give up after so many seconds.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Wait until a service's study has ended; exit code 1 unless it has finished.

    Example: ftp-search wait mine --server http://gpu-box:8000
    """
    with _client(server) as client:
        study = client.wait(name, timeout)
    _show(study, as_json)
    if study["state"] != "finished":
        raise typer.Exit(1)


def stop_command(
    name: StudyName, server: Server = DEFAULT_SERVER, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Stop a service's study; everything is kept, and it can be resumed.

    Example: ftp-search stop mine --server http://gpu-box:8000
    """
    with _client(server) as client:
        _show(client.stop(name), as_json)


def add_service_commands(app: typer.Typer) -> None:
    """Add the commands to a command line."""
    app.command("serve")(serve_command)
    app.command("worker")(worker_command)
    app.add_typer(token, name="token")
    # Where the cluster is, the service decides.
    fields = [field for field in SETTINGS if field != "ray_address"]
    app.command("submit", cls=GroupedCommand)(with_settings(submit_command, fields))
    app.command("status")(status_command)
    app.command("wait")(wait_command)
    app.command("stop")(stop_command)


def needs_extra() -> None:
    """Check that the service's own dependencies are there.

    Raises:
        SearchError: They are not.
    """
    try:
        import dash  # noqa: F401
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SearchError(f"{error.name} is not installed: pip install 'ftp-search[serve]'.") from error


def _client(server: str) -> Any:
    from search.client import Client

    return Client(server, os.environ.get(TOKEN_VARIABLE))


def _reach(roots: list[Path] | None, hub: bool, out: Path) -> Reach:
    return Reach(tuple(_root(one) for one in roots or ()), out.resolve(), hub)


def _root(folder: Path) -> Path:
    resolved = folder.resolve()
    if not resolved.is_dir():
        raise ConfigError(f"--root is {str(folder)!r}: expected a folder.")
    return resolved


def _show(study: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(study))
        return
    error = (study.get("run") or {}).get("error")
    print(f"{study['name']}: {study['state']}, {study['n_trials']} trials" + (f" ({error})" if error else ""))

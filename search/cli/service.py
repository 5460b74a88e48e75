"""The commands of the service: `serve`, `runner` and `token`."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ftp_core.extras import install_extra
from search.cli.log_level import LOG_VARIABLE, log_to_stderr
from search.cli.options import AsJson, Storage
from search.cli.tables import wide_table
from search.config.groups import DEFAULT_OUT
from search.config.run_config import DEFAULT_STORAGE
from search.errors import ConfigError, SearchError
from search.evaluators.ray_address import check_address
from search.reports import write_reports
from search.service.rules.roots import Reach
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role
from studies.sql.times import local_text

# Seconds that requests wait for an unreachable database; the client is told and can ask again.
_PATIENCE_S = 2.0

Roots = Annotated[
    list[Path] | None,
    typer.Option("--root", metavar="DIR", help="Folder from which studies may use files; may be repeated."),
]
Hub = Annotated[bool, typer.Option("--hub", help="Allow models of the Hugging Face Hub.")]
ServiceOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of reports and pruned models.")]

token = typer.Typer(rich_markup_mode=None, help="Add, list and remove the tokens of a service.")


def serve_command(
    storage: Storage = DEFAULT_STORAGE,
    host: Annotated[str, typer.Option("--host", help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    runners: Annotated[int, typer.Option("--runners", min=0, help="Runner processes to start.")] = 1,
    root: Roots = None,
    hub: Hub = False,
    out: ServiceOut = DEFAULT_OUT,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", metavar="HOST:PORT", help="Ray cluster that the started runners use.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option("--proxy", metavar="ADDRESS", help="Proxy that is trusted to say where requests come from."),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let everybody in while there is no token.")] = False,
) -> None:
    """Serve studies and a dashboard over HTTP, and run the studies that are submitted.

    Example: ftp-search serve --root /srv/models --root /srv/data
    """
    try:
        import dash  # noqa: F401
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SearchError(f"{error.name} is not installed: {install_extra('serve')}.") from error
    from search.service.dashboard import dashboard
    from search.service.rules.settings import ServiceSettings, is_loopback
    from search.service.serving import serve

    log_to_stderr()
    command = [sys.executable, "-P", "-m", "search", "runner"]
    command += [] if ray_address is None else ["--ray-address", ray_address]
    reach = _reach(root, hub, out)
    command += [f"--root={one}" for one in reach.roots]
    command += [f"--out={reach.out}", *(["--hub"] if hub else [])] if reach.roots else []
    with ServiceStore(storage, patience_s=_PATIENCE_S) as store:
        settings = ServiceSettings(reach.out, reach.roots, hub, is_loopback(host), insecure)
        serve(store, settings, host, port, runners, command, proxy, dashboard(settings))


def runner_command(
    storage: Storage = DEFAULT_STORAGE,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="HOST:PORT", help="Ray cluster to use; this machine if not given."),
    ] = None,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Exit once no study is waiting.")] = False,
    root: Roots = None,
    hub: Hub = False,
    out: ServiceOut = DEFAULT_OUT,
) -> None:
    """Run the studies that are submitted to a service; works on any machine that reaches its database.

    With --root, a study fails if it reads files outside these folders, writes outside them and --out, or uses a model
    of the Hub without --hub. Without --root, a study may use any file.

    Example: ftp-search runner --storage postgresql+psycopg://user:password@host/studies
    """
    from search.service.jobs.children import PARENT_VARIABLE
    from search.service.jobs.runner import Runner

    check_address(ray_address)
    log_to_stderr()
    if LOG_VARIABLE not in os.environ:
        logging.getLogger("search.service").setLevel(logging.INFO)
    parent = os.environ.get(PARENT_VARIABLE)
    reach = _reach(root, hub, out) if root else None
    Runner(storage, write_reports, ray_address, None if parent is None else int(parent), reach).run(until_idle)


@token.command("add")
def add_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Owner or purpose of the token.")],
    role: Annotated[
        Role, typer.Option("--role", help="Readers see everything; editors also create, stop and delete studies.")
    ],
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Add a token and print its secret, which cannot be shown again.

    Example: ftp-search token add ada --role editor
    """
    with ServiceStore(storage) as store:
        print(store.tokens.add(name, role))


@token.command("list")
def list_tokens(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """List tokens, without their secrets.

    Example: ftp-search token list
    """
    with ServiceStore(storage, create=False) as store:
        found = store.tokens.all()
    if as_json:
        rows = [{"name": one.name, "role": one.role, "created_at": one.created_at.isoformat()} for one in found]
        print(json.dumps(rows))
        return
    table = wide_table("name", "role", "created")
    for one in found:
        table.add_row(one.name, one.role.value, local_text(one.created_at))
    Console(markup=False, highlight=False).print(table if found else "No tokens yet: ftp-search token add NAME")


@token.command("remove")
def remove_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token.")], storage: Storage = DEFAULT_STORAGE
) -> None:
    """Remove a token; its browser sessions end.

    Example: ftp-search token remove ada
    """
    with ServiceStore(storage, create=False) as store:
        store.tokens.remove(name)
    print(f"removed {name}")


def _reach(roots: list[Path] | None, hub: bool, out: Path) -> Reach:
    for folder in roots or ():
        if not folder.is_dir():
            raise ConfigError(f"--root is {str(folder)!r}: expected a folder.")
    return Reach(tuple(folder.resolve() for folder in roots or ()), out.resolve(), hub)

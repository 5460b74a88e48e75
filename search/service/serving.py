"""Serves the application over HTTP, with runners beside it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import closing

import uvicorn

from search.errors import ConfigError
from search.service.http.app import MountDashboard, create_app
from search.service.jobs.runner_processes import RunnerProcesses
from search.service.rules.settings import ServiceSettings, is_loopback
from studies.service.service_store import ServiceStore

# Streams of events are cut off then.
_LAST_WORDS_S = 3


def check_reach(host: str, insecure: bool, store: ServiceStore) -> None:
    """Whoever can be reached from other machines asks for a token, or was told in so many words not to.

    Raises:
        ConfigError: There is none.
    """
    if not is_loopback(host) and not insecure and not store.tokens.exist():
        raise ConfigError(
            f"--host is {host!r}, where other machines reach it, and there is no token: add one with "
            "`ftp-search token add NAME --role editor`, or let everybody in with --insecure."
        )


def serve(
    store: ServiceStore,
    settings: ServiceSettings,
    host: str,
    port: int,
    runners: int,
    runner_command: Sequence[str],
    proxy: str | None = None,
    dashboard: MountDashboard | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until somebody presses Ctrl-C, or sends SIGTERM.

    Args:
        store: Where studies live.
        settings: How the service is set up.
        host: Address to bind to.
        port: Port; 0 for any that is free.
        runners: Runner processes to keep running.
        runner_command: Starts one of them.
        proxy: Address of a proxy whose word on where requests come from is taken; None for none.
        dashboard: Adds a dashboard.
        say: Called with the address, once it can be reached.

    Raises:
        ConfigError: Other machines reach it, and there is no token; or the address cannot be bound to.
    """
    check_reach(host, settings.insecure, store)
    with closing(bound(host, port)) as listener:
        config = uvicorn.Config(
            create_app(store, settings, dashboard),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=proxy is not None,
            forwarded_allow_ips=proxy,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        )
        shown = f"[{host}]" if ":" in host else host
        with RunnerProcesses(runners, runner_command, store.url):
            say(f"Serving on http://{shown}:{listener.getsockname()[1]}")
            uvicorn.Server(config).run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Address to bind to.
        port: Port; 0 for any that is free.

    Raises:
        ConfigError: It cannot be bound to.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A service that is started anew gets its port back at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
    except OSError as error:
        raise ConfigError(f"Cannot serve on {host}, port {port}: {error.strerror or error}. Choose others.") from error
    return listener

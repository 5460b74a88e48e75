"""Serves the application over HTTP and keeps runners going."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing

import uvicorn

from search.errors import ConfigError
from search.service.http.app import MountDashboard, create_app
from search.service.jobs.runner_processes import RunnerProcesses
from search.service.rules.settings import ServiceSettings, is_loopback
from studies.service.service_store import ServiceStore

# Seconds that open streams of events get as the service ends.
_LAST_WORDS_S = 3


def check_reach(host: str, insecure: bool, store: ServiceStore) -> None:
    """Raise `ConfigError` for a service that other machines reach without a token, unless it is meant to be open."""
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
) -> None:
    """Serve until Ctrl-C or SIGTERM; prints the address once it can be reached.

    Any free port is taken for 0. The command starts a runner; a proxy is trusted to say where requests come from.

    Raises:
        ConfigError: Other machines reach the service and there is no token, or the address cannot be bound.
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
            print(f"Serving on http://{shown}:{listener.getsockname()[1]}", flush=True)
            uvicorn.Server(config).run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; raises `ConfigError` if it cannot be bound."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A restarted service gets its port back at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
    except OSError as error:
        raise ConfigError(f"Cannot serve on {host}, port {port}: {error.strerror or error}. Choose others.") from error
    return listener

"""Checks, before Ray is loaded, that it can be joined or started: Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

from search.errors import EvaluationError

# What needs no connection: a Ray of this machine, or the one that Ray finds by itself.
_BY_NAME = ("auto", "local")
_PATIENCE_S = 5.0
# How a client of HTTP/2, which gRPC is, greets: its preface, and settings of which all are the defaults; the server
# answers with settings of its own (RFC 9113, 3.4).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HEADER_BYTES, _SETTINGS = 9, 4
# Ray's own variables of the token that its processes share; else it makes one in the home folder.
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def check_address(address: str | None) -> None:
    """Check that something that may be a Ray cluster answers at an address, within about ten seconds.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, `auto` or `local`; None for a Ray of this process.

    Raises:
        EvaluationError: It is no such address, or nothing answers there as Ray would.
    """
    if address is None or address in _BY_NAME:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise EvaluationError(f"--ray-address is {address!r}: expected HOST:PORT, such as 10.0.0.5:6379.")
    advice = "Is the cluster running (`ray status`), and may this machine connect to it?"
    try:
        with closing(socket.create_connection((host, int(port)), _PATIENCE_S)) as connection:
            # With TLS it answers to nobody who does not begin with that.
            is_ray = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(connection)
    except OSError as error:
        raise EvaluationError(f"No Ray cluster answers at {address!r} ({error.strerror or error}). {advice}") from error
    if not is_ray:
        raise EvaluationError(f"What answers at {address!r} is no Ray cluster. {advice}")


def _speaks_http2(connection: socket.socket) -> bool:
    connection.settimeout(_PATIENCE_S)
    connection.sendall(_GREETING)
    header = b""
    while len(header) < _HEADER_BYTES and (piece := connection.recv(_HEADER_BYTES - len(header))):
        header += piece
    return len(header) == _HEADER_BYTES and header[3] == _SETTINGS


def check_home() -> None:
    """Check that a Ray of this machine can keep its token in the user's home folder.

    Raises:
        EvaluationError: It cannot.
    """
    has_token = any(os.environ.get(variable) for variable in _TOKEN_VARIABLES)
    if has_token or os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return
    folder = Path("~/.ray").expanduser()
    if os.access(folder / "auth_token", os.R_OK):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise EvaluationError(
            f"Ray cannot keep its token in {folder} ({error.strerror}): set HOME to a folder that can be written to."
        ) from error

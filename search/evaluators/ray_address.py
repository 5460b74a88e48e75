"""Finds out soon whether a Ray cluster answers: Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket
from contextlib import closing

from search.errors import EvaluationError

# What needs no connection: a Ray of this machine, or the one that Ray finds by itself.
_BY_NAME = ("auto", "local")
_PATIENCE_S = 5.0
# How a client of HTTP/2, which gRPC is, greets: its preface, and settings of which all are the defaults; the server
# answers with settings of its own (RFC 9113, 3.4).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HEADER_BYTES, _SETTINGS = 9, 4


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

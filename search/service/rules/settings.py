"""Settings of the service itself, which no request can change."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServiceSettings:
    """The setup of a service."""

    out: Path  # folder that holds a folder for each study, absolute
    roots: tuple[Path, ...] = ()  # folders from which requests may use files, absolute and without symbolic links
    hub: bool = False  # requests may name models of the Hugging Face Hub
    is_local: bool = True  # only this machine reaches the service, which needs no token until there is one
    insecure: bool = False  # no token is needed until there is one, even from other machines
    stream_s: float = 900.0  # duration of a stream of events, after which the client reconnects with its token
    max_streams: int = 64  # most simultaneous streams of events
    max_streams_each: int = 16  # most of them with the same token
    max_body_bytes: int = 2**20  # most bytes in the body of a request
    body_s: float = 30.0  # seconds until the body of a request must have come
    prompt_s: float = 300.0  # most seconds in which somebody's own prompt is answered, loading of the model included


def is_loopback(host: str) -> bool:
    """True for a host name or address, without a port, of the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Settings of the service itself, which no request can change."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServiceSettings:
    """The setup of a service.

    Attributes:
        out: Folder that holds a folder for each study, absolute.
        roots: Folders below which requests may name models, data and results, absolute and without symbolic links.
        hub: Requests may name models of the Hugging Face Hub.
        is_local: Only this machine reaches the service, which needs no token until there is one.
        insecure: No token is needed until there is one, even from other machines.
        stream_s: Duration of a stream of events, after which the client reconnects with its token.
        max_streams: Most simultaneous streams of events.
        max_body_bytes: Most bytes in the body of a request.
    """

    out: Path
    roots: tuple[Path, ...] = ()
    hub: bool = False
    is_local: bool = True
    insecure: bool = False
    stream_s: float = 900.0
    max_streams: int = 64
    max_body_bytes: int = 2**20


def is_loopback(host: str) -> bool:
    """True for a host name or address, without a port, of the loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

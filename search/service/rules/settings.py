"""Settings of the service itself, which no request can change."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServiceSettings:
    """The setup of a service.

    Attributes:
        out: Folder in which each study has one of its own, absolute.
        roots: Folders below which requests may name models, data and results, absolute and without symbolic links.
        hub: Whether requests may name models of the Hugging Face Hub.
        is_local: Whether it answers this machine alone: then nobody needs a token until there is one.
        insecure: Whether nobody needs a token until there is one, wherever requests come from.
        stream_s: Duration of one stream of events; a client that wants more asks again, with its token.
        max_streams: Most streams of events at a time.
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
    """Whether a host's name or address, without a port, is this machine's for itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""What whoever starts the service decides, and no request can change."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServiceSettings:
    """How a service is set up.

    Attributes:
        out: Folder in which each study has one of its own, absolute.
        roots: Folders below which requests may name models, data and results, absolute and without symbolic links.
        hub: Whether requests may name models of the Hugging Face Hub.
        is_local: Whether it answers this machine alone: then nobody needs a token until there is one.
        insecure: Whether nobody needs a token until there is one, wherever requests come from.
        stream_s: How long one stream of events lasts; who still wants to know then asks again, and shows the token.
        max_streams: Streams of events at a time.
        max_body_bytes: Longest body of a request.
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

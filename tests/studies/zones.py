"""Lets this process live in another time zone for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def in_zone(zone: str) -> Iterator[None]:
    """Live in a zone, such as `Asia/Tokyo`."""
    before = os.environ.get("TZ")
    _live(zone)
    try:
        yield
    finally:
        _live(before)


def _live(zone: str | None) -> None:
    os.environ.pop("TZ", None)
    if zone is not None:
        os.environ["TZ"] = zone
    time.tzset()

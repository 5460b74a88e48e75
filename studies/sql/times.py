"""Moments: in UTC in the database, aware in Python, and by the local clock for Optuna's tools and on screens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Dialect, String


class UtcTime(sa.TypeDecorator[datetime]):
    """A moment as ISO 8601 text in UTC: the same on every database, with microseconds and a time zone.

    Of one length, so that the texts have the order of the moments. A time without a zone counts as local.
    """

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else value.astimezone(UTC).isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else datetime.fromisoformat(value)


def optuna_time(moment: datetime | None) -> datetime | None:
    """A moment as Optuna's storages give it: on this machine's clock, without a zone.

    Of an hour that comes twice as summer time ends, `fold` says which one it is: Python can tell the moment again.
    """
    return None if moment is None else datetime.fromtimestamp(moment.timestamp())


def local_text(moment: datetime) -> str:
    """A moment on this machine's clock, to the minute, such as `2026-01-02 12:04 UTC+09:00`.

    The zone is its distance from UTC then: abbreviations such as CST mean several.
    """
    local = moment.astimezone()
    offset = local.strftime("%z")
    zone = "UTC" if not int(offset) else f"UTC{offset[:3]}:{offset[3:]}"
    return f"{local:%Y-%m-%d %H:%M} {zone}"

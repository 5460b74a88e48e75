"""Keeps latency profiles of machines, for every study of a database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from studies.sql import schema
from studies.store.names import Part


class Profiles(Part):
    """Latency profiles that all studies of a database share."""

    def get(self, fingerprint: str) -> Mapping[str, Any] | None:
        """The latency profile that was measured under these conditions; None if there is none."""
        table = schema.latency_profile.c
        selected = sa.select(table.profile).where(table.fingerprint == fingerprint)
        return self._database.read(lambda connection: connection.execute(selected).scalar())

    def keep(
        self, fingerprint: str, conditions: Mapping[str, Any], profile: Mapping[str, Any], replace: bool = False
    ) -> Mapping[str, Any]:
        """Keeps a latency profile for every study of this database.

        Args:
            fingerprint: Hash of the conditions.
            conditions: Model, machine and software that it holds for.
            profile: The profile.
            replace: Whether it takes the place of an earlier one. Studies that began with that one keep it.

        Returns:
            The profile that is kept: an earlier one, if there is one and it is not replaced.
        """
        table = schema.latency_profile
        row = {
            "fingerprint": fingerprint,
            "conditions": dict(conditions),
            "profile": dict(profile),
            "created_at": datetime.now(UTC),
        }

        def work(connection: Connection) -> None:
            if replace:
                connection.execute(sa.delete(table).where(table.c.fingerprint == fingerprint))
            connection.execute(sa.insert(table), row)

        try:
            self._database.write(work)
        except sa.exc.IntegrityError:
            return self.get(fingerprint) or profile
        return profile

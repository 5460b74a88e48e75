"""Keeps what came out of studies of schedules: measurements, distilled routers, and profiles of machines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from studies.errors import StorageError
from studies.records.measurement import Measurement
from studies.records.records import (
    Disagreement,
    Exhibits,
    GroupAccuracy,
    RoutedPrompt,
    RouterRun,
)
from studies.sql import schema
from studies.sql.database import Database
from studies.store.artifacts import ArtifactStore
from studies.store.named import NamedStudies


class StudyResults(NamedStudies):
    """Measurements and routers of studies, and the latency profiles that all studies of a database share.

    Args:
        database: Where they live.
        artifacts: Where earlier versions kept the weights of routers, and where unfinished work lies.
    """

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        super().__init__(database)
        self._artifacts = artifacts

    def replace_measurements(self, name: str, measurements: Sequence[Measurement]) -> None:
        """Keep these measurements instead of those before."""

        def work(connection: Connection, study_id: int) -> None:
            table = schema.measurement
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            for measurement in measurements:
                figures = asdict(measurement)
                row = {"study_id": study_id, "schedule": figures.pop("schedule"), "figures": figures}
                connection.execute(sa.insert(table), row)

        self._of_study(name, work, write=True)

    def measurements(self, name: str) -> list[Measurement]:
        """What was measured, in the order in which it was handed over."""
        table = schema.measurement

        def work(connection: Connection, study_id: int) -> list[Measurement]:
            rows = connection.execute(sa.select(table).where(table.c.study_id == study_id).order_by(table.c.id))
            return [Measurement(schedule=row.schedule, **row.figures) for row in rows]

        return self._of_study(name, work)

    def add_router_run(self, name: str, run: RouterRun) -> None:
        """Keep a distilled router with its weights.

        Raises:
            StorageError: The weights' hash is not the one that they are said to have.
        """
        if hashlib.sha256(run.weights).hexdigest() != run.sha256:
            raise StorageError(f"The router's weights do not have the hash {run.sha256}: hand over both of one router.")
        row = asdict(run) | {"config": dict(run.config), "curves": dict(run.curves)}
        del row["number"]
        self._of_study(
            name,
            lambda connection, study_id: connection.execute(
                sa.insert(schema.router_run), {"study_id": study_id, **row}
            ),
            write=True,
        )

    def router_runs(self, name: str, with_weights: bool = True) -> list[RouterRun]:
        """Every router of a study, oldest first.

        Args:
            name: The study.
            with_weights: Whether to read the weights, too; they are empty otherwise.

        Raises:
            StorageError: The weights of one are missing, or are not those that were stored.
        """
        table = schema.router_run
        columns = [one for one in table.c if one.name not in ("id", "study_id", "weights")]
        selected = sa.select(*columns, *([table.c.weights] if with_weights else []))

        def work(connection: Connection, study_id: int) -> Sequence[Row[Any]]:
            return connection.execute(selected.where(table.c.study_id == study_id).order_by(table.c.id)).all()

        runs = []
        for number, row in enumerate(self._of_study(name, work)):
            fields = row._asdict()
            kept = fields.pop("weights", None)
            weights = self._weights(name, row.sha256, kept) if with_weights else b""
            runs.append(RouterRun(weights=weights, number=number, **fields))
        return runs

    def _weights(self, name: str, sha256: str, kept: bytes | None) -> bytes:
        """Weights as they are kept; those that an earlier version did not keep in the database are a file."""
        if kept is None:
            return self._artifacts.get(sha256)
        if hashlib.sha256(kept).hexdigest() != sha256:
            raise StorageError(
                f"A router of study {name!r} was altered in {self._database}: its weights no longer have the hash "
                f"{sha256}. Restore the database, or distil the router again."
            )
        return bytes(kept)

    def latest_router(self, name: str) -> RouterRun | None:
        """The router that was stored last."""
        runs = self.router_runs(name)
        return runs[-1] if runs else None

    def keep_exhibits(self, name: str, exhibits: Exhibits) -> None:
        """Keep what a report shows of single prompts and items, instead of what was kept before."""
        table, contents = schema.exhibit, asdict(exhibits)

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            rows = [{"study_id": study_id, "kind": kind, "content": content} for kind, content in contents.items()]
            connection.execute(sa.insert(table), rows)

        self._of_study(name, work, write=True)

    def exhibits(self, name: str) -> Exhibits | None:
        """What a report shows of single prompts and items; None before they were looked at."""
        table = schema.exhibit

        def work(connection: Connection, study_id: int) -> dict[str, Any]:
            rows = connection.execute(sa.select(table).where(table.c.study_id == study_id))
            return {row.kind: row.content for row in rows}

        found = self._of_study(name, work)
        return _exhibits(found) if found else None

    def unfinished(self, name: str, stage: str) -> Path | None:
        """Where a stage of a study keeps how far it has come, as a file or a folder; None for a database in memory.

        Whoever ends the stage removes it.
        """
        study_id = self._of_study(name, lambda _, study_id: study_id)
        # Databases may share a folder of artifacts.
        place = hashlib.sha256(f"{self._database.url.render_as_string()} {study_id}".encode()).hexdigest()[:16]
        return self._artifacts.scratch(f"{place}-{stage}")

    def latency_profile(self, fingerprint: str) -> Mapping[str, Any] | None:
        """The latency profile that was measured under these conditions; None if there is none."""
        table = schema.latency_profile.c
        selected = sa.select(table.profile).where(table.fingerprint == fingerprint)
        return self._database.read(lambda connection: connection.execute(selected).scalar())

    def keep_latency_profile(
        self, fingerprint: str, conditions: Mapping[str, Any], profile: Mapping[str, Any], replace: bool = False
    ) -> Mapping[str, Any]:
        """Keep a latency profile for every study of this database.

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
            return self.latency_profile(fingerprint) or profile
        return profile


def _exhibits(found: Mapping[str, Any]) -> Exhibits:
    """Exhibits from JSON, which knows no tuples."""
    return Exhibits(
        **{
            **found,
            "prompts": tuple(
                RoutedPrompt(**{**one, "tokens": tuple(one["tokens"]), "blocks_run": tuple(one["blocks_run"])})
                for one in found["prompts"]
            ),
            "groups": tuple(
                GroupAccuracy(**{**one, "interval": {name: tuple(ends) for name, ends in one["interval"].items()}})
                for one in found["groups"]
            ),
            "disagreements": tuple(Disagreement(**one) for one in found["disagreements"]),
            # Earlier versions did not compare them.
            "kl_ratios": {name: (low, high) for name, (low, high) in found.get("kl_ratios", {}).items()},
        }
    )

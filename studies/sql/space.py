"""Keeps each distribution of a study once, and reads trials back that refer to them by number."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection, Row

from studies.sql import schema
from studies.sql.packing import split_params, unpack_floats, unpack_ids, unpack_steps
from studies.sql.times import optuna_time

_STATES = {state.value: state for state in TrialState}


def _shared_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The attributes of a hundred thousand trials have the same few names: one string of each is enough.
    return {sys.intern(key): value for key, value in pairs}


_decode = json.JSONDecoder(object_pairs_hook=_shared_keys).decode


def key_of(name: str, distribution: BaseDistribution) -> tuple[Any, ...]:
    """Equal for equal distributions of one name, and cheaper than their JSON."""
    if type(distribution) is FloatDistribution:
        return (name, distribution.low, distribution.high, distribution.log, distribution.step)
    return (name, distribution_to_json(distribution))


class Space:
    """A study's distributions, each with its number in the database."""

    def __init__(self) -> None:
        self.ids: dict[tuple[Any, ...], int] = {}
        self.by_id: dict[int, tuple[str, BaseDistribution]] = {}
        self.by_name: dict[str, BaseDistribution] = {}
        # Trials that were drawn from the same distributions share the dictionary of them.
        self._templates: dict[bytes, tuple[tuple[str, ...], dict[str, BaseDistribution], bool]] = {}

    def add(self, number: int, name: str, definition: str) -> None:
        """Take over a row of the table of distributions."""
        distribution = json_to_distribution(definition)
        self.ids[key_of(name, distribution)] = number
        self.by_id[number] = (name, distribution)
        self.by_name.setdefault(name, distribution)

    def unpack(self, packed: bytes) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Parameters as users see them, and their distributions.

        Raises:
            KeyError: A distribution is not known yet.
        """
        ids, values = split_params(packed)
        template = self._templates.get(ids)
        if template is None:
            pairs = [self.by_id[number] for number in unpack_ids(ids)]
            plain = all(type(distribution) is FloatDistribution for _, distribution in pairs)
            template = tuple(name for name, _ in pairs), dict(pairs), plain
            self._templates[ids] = template
        names, distributions, plain = template
        if plain:
            return dict(zip(names, values, strict=True)), distributions
        return {
            name: distributions[name].to_external_repr(value) for name, value in zip(names, values, strict=True)
        }, distributions


class Spaces:
    """The spaces of the studies of one database; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._spaces: dict[int, Space] = {}

    def forget(self, study_id: int) -> None:
        """Drop what is known of a study."""
        with self._lock:
            self._spaces.pop(study_id, None)

    def known(self, study_id: int, name: str, distribution: BaseDistribution) -> int | None:
        """The number of a distribution, if it can be told without the database."""
        space = self._spaces.get(study_id)
        return None if space is None else space.ids.get(key_of(name, distribution))

    def knows(self, study_id: int, distributions: Mapping[str, BaseDistribution]) -> bool:
        """True if the numbers of all of these are known without the database."""
        return all(self.known(study_id, *item) is not None for item in distributions.items())

    def intern(
        self, connection: Connection, study_id: int, name: str, distribution: BaseDistribution, alone: bool = False
    ) -> int:
        """The number of a distribution in a study whose row the transaction holds locked.

        If it is `alone`, it need not go with what other trials drew parameters of this name from.

        Raises:
            ValueError: The study knows another distribution of this name that does not go with it.
        """
        key = key_of(name, distribution)
        known = self.of(connection, study_id).ids.get(key)
        if known is not None:
            return known
        space = self.of(connection, study_id, again=True)
        if key in space.ids:
            return space.ids[key]
        if name in space.by_name and not alone:
            check_distribution_compatibility(space.by_name[name], distribution)
        row = {"study_id": study_id, "name": name, "definition": distribution_to_json(distribution)}
        inserted = connection.execute(sa.insert(schema.distribution), row)
        assert inserted.inserted_primary_key is not None
        # Not kept in `space` before it is committed: the next one who asks reads it from the database.
        number: int = inserted.inserted_primary_key[0]
        return number

    def of(self, connection: Connection, study_id: int, again: bool = False) -> Space:
        """The space of a study as far as it is known here, or as far as the database knows it (`again`)."""
        with self._lock:
            if again or study_id not in self._spaces:
                space = self._spaces.setdefault(study_id, Space())
                table = schema.distribution.c
                rows = connection.execute(
                    sa.select(schema.distribution).where(table.study_id == study_id).order_by(table.id)
                )
                for row in rows:
                    if row.id not in space.by_id:
                        space.add(row.id, row.name, row.definition)
            return self._spaces[study_id]

    def frozen(self, connection: Connection, row: Row[Any], params_instead: bytes | None = None) -> FrozenTrial:
        """A row of the trial table as Optuna's value; trials of one space share the dictionary of its distributions.

        Args:
            connection: Asks for distributions that are not known yet.
            row: All columns.
            params_instead: Packed parameters that are newer than the row's.
        """
        number_id, study_id, number, state, packed, values, steps, user, system, started, completed = tuple(row)
        packed = packed if params_instead is None else params_instead
        space = self.of(connection, study_id)
        try:
            params, distributions = space.unpack(packed)
        except KeyError:
            params, distributions = self.of(connection, study_id, again=True).unpack(packed)
        return FrozenTrial(
            number=number,
            state=_STATES[state],
            value=None,
            values=None if values is None else list(unpack_floats(values)),
            datetime_start=optuna_time(started),
            datetime_complete=optuna_time(completed),
            params=params,
            distributions=distributions,
            user_attrs={} if user is None else _decode(user),
            system_attrs={} if system is None else _decode(system),
            intermediate_values=unpack_steps(steps),
            trial_id=number_id,
        )

"""Reads trials by the column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from sqlalchemy.engine import Connection, Row

from studies.optuna_storage.attributes import attributed_violation, ended_by_search
from studies.records.halves import parameter_names
from studies.records.trial_columns import STATES, Floats, TrialColumns, build_columns, merge_columns, seconds_since_1970
from studies.sql import schema
from studies.sql.packing import PARAM_BYTES, unpack_ids
from studies.store.names import Part
from studies.store.trials import ENDED

_trial, _run = schema.trial.c, schema.search_run.c
_READ = ("number", "state", "params", "objective_values", "user_attributes", "system_attributes", "completed_at")
_NUMBER, _PARAMS, _ATTRIBUTES = (_READ.index(name) for name in ("number", "params", "user_attributes"))
_STATE_NUMBERS = {optuna_state.value: STATES.index(state) for optuna_state, state in ENDED.items()}
# Trials that others have overtaken are asked for by number, up to so many.
_MOST_GAPS = 500
# Texts decoded as one: more are no faster, and other threads wait for them.
_DECODED_AT_ONCE = 500
_NOTHING: Mapping[str, Any] = {}


class Columns(Part):
    """Trials of studies, read by the column."""

    def of(self, name: str, known: TrialColumns | None = None) -> TrialColumns:
        """Every trial that a search has ended.

        Args:
            name: The study.
            known: Columns that were read of the same study before: only the other trials are read then.

        Raises:
            StudyNotFoundError: There is no such study.
        """

        def work(connection: Connection, study_id: int) -> TrialColumns:
            where = [_trial.study_id == study_id, _trial.state.in_(list(_STATE_NUMBERS))]
            if known is not None and len(ended := known.ended):
                where.append(sa.or_(_trial.number > int(ended[-1]), _trial.number.in_(_gaps(ended))))
            selected = sa.select(*(_trial[column] for column in _READ)).where(*where).order_by(_trial.number)
            rows: Sequence[Row[Any]] = connection.execute(selected).all()
            objectives = sa.select(_run.objectives).where(_run.study_id == study_id)
            said = _decoded([row[_ATTRIBUTES] for row in rows])
            ours = [place for place, one in enumerate(said) if ended_by_search(one)]
            packed = [rows[place][_PARAMS] for place in ours]
            schedules, is_schedule, has_halves = self._schedules(connection, study_id, packed)
            kept = list(compress(ours, is_schedule))
            n_objectives = len(connection.execute(objectives).scalar_one())
            # Faster than asking each row for each of its parts.
            columns = list(zip(*(rows[place] for place in kept), strict=True)) or [()] * len(_READ)
            numbers, states, _, values, _, system, completed = columns
            found = build_columns(
                numbers,
                [_STATE_NUMBERS[state] for state in states],
                values,
                list(map(seconds_since_1970, completed)),
                _violations(system),
                [said[place] for place in kept],
                schedules,
                n_objectives,
                has_halves,
            )
            ended = np.array([row[_NUMBER] for row in rows], dtype=np.int64)
            return replace(found, left_aside=np.setdiff1d(ended, found.number))

        found = self._names.transact(name, work)
        if known is None or not len(found.ended):
            return found if known is None else known
        merged = merge_columns(known, found) if len(known) and len(found) else (known if len(known) else found)
        return replace(merged, left_aside=np.union1d(known.left_aside, found.left_aside))

    def _schedules(
        self, connection: Connection, study_id: int, packed: Sequence[bytes]
    ) -> tuple[NDArray[np.float32], list[bool], bool]:
        """Schedules [n, numbers] of packed parameters, for each whether it is one, and whether they have halves."""
        ids = [one[: len(one) // PARAM_BYTES * 4] for one in packed]
        orders = {one: self._order(connection, study_id, one) for one in dict.fromkeys(ids)}
        n_numbers = next((len(order) for order in orders.values() if order is not None), 0)
        is_schedule = [(order := orders[one]) is not None and len(order) == n_numbers for one in ids]
        ours = list(compress(ids, is_schedule))
        values = [one[len(own) :] for one, own in zip(compress(packed, is_schedule), ours, strict=True)]
        shares = np.frombuffer(b"".join(values), "<f8").reshape(len(values), n_numbers)
        if len(orders) == 1 and ours:
            shares = shares[:, orders[ours[0]]]
        elif ours:
            shares = np.take_along_axis(shares, np.array([orders[one] for one in ours], np.intp), 1)
        spaces = self._storage.spaces.of(connection, study_id).by_id
        has_halves = bool(ours) and any(spaces[number][0] == "attention_0" for number in unpack_ids(ours[0]))
        return shares.astype(np.float32), is_schedule, has_halves

    def _order(self, connection: Connection, study_id: int, ids: bytes) -> NDArray[np.intp] | None:
        """Places of the blocks among parameters with these ids; None if they are no schedule."""
        spaces, numbers = self._storage.spaces, unpack_ids(ids)
        space = spaces.of(connection, study_id)
        if any(number not in space.by_id for number in numbers):
            space = spaces.of(connection, study_id, again=True)
        pairs = [space.by_id[number] for number in numbers]
        places = {name: place for place, (name, _) in enumerate(pairs)}
        has_halves = "attention_0" in places
        names = parameter_names(len(pairs) // (3 if has_halves else 1), has_halves)
        blocks = [places.get(name) for name in names]
        plain = all(isinstance(distribution, FloatDistribution) for _, distribution in pairs)
        if not blocks or len(blocks) != len(pairs) or not plain or any(place is None for place in blocks):
            return None
        return np.array(blocks, dtype=np.intp)


def _gaps(ended: NDArray[np.int64]) -> list[int]:
    """Numbers below the last one that had not ended: only the latest, since workers do not run that many at once."""
    last = int(ended[-1])
    if len(ended) == last + 1:
        return []
    missing = np.setdiff1d(np.arange(last), ended)
    return [int(number) for number in missing[-_MOST_GAPS:]]


def _decoded(texts: Sequence[str | None]) -> list[Mapping[str, Any]]:
    """Decoded attributes; empty where there are none."""
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(texts), _DECODED_AT_ONCE):
        part = ["null" if text is None else text for text in texts[start : start + _DECODED_AT_ONCE]]
        found += [one or _NOTHING for one in json.loads(f"[{','.join(part)}]")]
    return found


def _violations(attributes: Sequence[str | None]) -> Floats:
    """By how much constraints are broken."""
    broken = np.zeros(len(attributes))
    places = [place for place, text in enumerate(attributes) if text is not None]
    for place, one in zip(places, _decoded([attributes[place] for place in places]), strict=True):
        broken[place] = attributed_violation(one)
    return broken

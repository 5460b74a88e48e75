"""Studies in a database that are Optuna's alone: with trials, but nothing that this program could go on with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from studies.sql import schema
from studies.store.names import Part

_study, _trial, _run = schema.study.c, schema.trial.c, schema.search_run.c


@dataclass(frozen=True)
class OptunaStudy:
    """A study that came from Optuna, or that a client of Optuna made."""

    name: str
    directions: tuple[str, ...]  # for each objective, whether it is minimised or maximised, in Optuna's words
    trials: Mapping[str, int]  # trials by their state, in Optuna's words
    attributes: Mapping[str, Any]  # user attributes

    @property
    def n_ended(self) -> int:
        """Trials that have ended."""
        return sum(n for state, n in self.trials.items() if TrialState[state.upper()].is_finished())


class OptunaStudies(Part):
    """The studies of a database that this program has not begun."""

    def all(self) -> list[OptunaStudy]:
        """Every study that is Optuna's alone, oldest first."""
        alone = sa.select(schema.study).where(_study.id.not_in(sa.select(_run.study_id))).order_by(_study.id)
        attribute = schema.study_attribute.c

        def work(connection: Connection) -> list[OptunaStudy]:
            studies = connection.execute(alone).all()
            ids = [study.id for study in studies]
            counts: dict[int, Counter[str]] = {study_id: Counter() for study_id in ids}
            counted = sa.select(_trial.study_id, _trial.state, sa.func.count()).where(_trial.study_id.in_(ids))
            for study_id, state, n in connection.execute(counted.group_by(_trial.study_id, _trial.state)):
                counts[study_id][TrialState(state).name.lower()] = n
            said: dict[int, dict[str, Any]] = {study_id: {} for study_id in ids}
            users = sa.select(schema.study_attribute).where(attribute.study_id.in_(ids), attribute.kind == "user")
            for row in connection.execute(users):
                said[row.study_id][row.key] = json.loads(row.value)
            return [
                OptunaStudy(
                    study.name,
                    tuple(StudyDirection(one).name.lower() for one in study.directions),
                    counts[study.id],
                    said[study.id],
                )
                for study in studies
            ]

        return self._database.read(work)

    def find(self, name: str) -> OptunaStudy | None:
        """One of these studies; None if there is none of this name."""
        return next((study for study in self.all() if study.name == name), None)

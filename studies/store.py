"""Keeps what this program knows of its studies, beside what Optuna would know of them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState
from sqlalchemy.engine import Connection, Row

from studies import schema
from studies.artifacts import ArtifactStore, artifact_folder
from studies.database import DEFAULT_PATIENCE_S, Database
from studies.errors import StorageError, StudyExistsError, StudyNotFoundError
from studies.lease import Holder, Lease, holder
from studies.packing import pack_floats, pack_params
from studies.records import (
    Measurement,
    ProposerState,
    QueuedTrial,
    RouterRun,
    StageRecord,
    StudyRecord,
    StudyState,
    StudySummary,
    TrialRecord,
    TrialState,
)
from studies.storage import StudyStorage, insert_study, next_number

T = TypeVar("T")

_STATES = {TrialState.FINISHED: OptunaState.COMPLETE, TrialState.FAILED: OptunaState.FAIL}
_ENDED = {optuna_state: state for state, optuna_state in _STATES.items()}
_PREFIX = "block_"
_SPARSITY = FloatDistribution(0.0, 1.0)

_run, _study, _trial = schema.search_run.c, schema.study.c, schema.trial.c


class StudyStore:
    """Studies of schedules in a SQL database; every method that writes is one transaction.

    Each is an Optuna study too, whose trials have a parameter `block_i` for each block: `storage` hands it to Optuna's
    tools.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        create: Whether a SQLite file that does not exist, or is empty, becomes a database.
        patience_s: How long a database that answered before may be away, in seconds.
        artifacts: Folder of router weights; None for the one that belongs to the database.

    Raises:
        StorageError: The URL is of no supported kind, or the database cannot be opened.
    """

    def __init__(
        self,
        url: str,
        create: bool = True,
        patience_s: float = DEFAULT_PATIENCE_S,
        artifacts: Path | None = None,
    ) -> None:
        self._database = Database(url, create, patience_s)
        self.storage = StudyStorage(self._database)
        self._artifacts = ArtifactStore(artifacts or artifact_folder(self._database.url))
        self._ids: dict[str, int] = {}
        # Numbers of the distributions of a study's blocks, by the study's id and how many blocks there are.
        self._block_ids: dict[tuple[int, int], tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return str(self._database)

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back."""
        self.storage.close()

    def create_study(self, name: str, config: Mapping[str, Any], objectives: Sequence[str]) -> StudyRecord:
        """Begin a study.

        Args:
            name: Unique in this database.
            config: How it is configured.
            objectives: Names of the objective values, in order.

        Raises:
            StudyExistsError: The name is taken.
        """
        values = {
            "state": StudyState.CREATED.value,
            "created_at": datetime.now(UTC),
            "config": dict(config),
            "objectives": list(objectives),
            "facts": {},
        }

        def work(connection: Connection) -> None:
            study_id = insert_study(connection, name, [StudyDirection.MINIMIZE] * len(objectives))
            connection.execute(sa.insert(schema.search_run), {"study_id": study_id, **values})

        try:
            self._database.write(work)
        except sa.exc.IntegrityError as error:
            raise StudyExistsError(
                f"A study named {name!r} exists in {self}: choose another --name, continue it with "
                f"`ftp-search resume {name}`, or remove it with `ftp-search delete {name}`."
            ) from error
        return self.study(name)

    def study(self, name: str) -> StudyRecord:
        """A study without its trials.

        Raises:
            StudyNotFoundError: There is none of this name.
        """
        row, held = self._of_study(
            name,
            lambda connection, study_id: (
                connection.execute(sa.select(schema.search_run).where(_run.study_id == study_id)).one(),
                holder(connection, study_id),
            ),
        )
        return StudyRecord(
            name=name,
            state=_state(row.state, held),
            created_at=row.created_at,
            config=row.config,
            objectives=tuple(row.objectives),
            facts=row.facts,
            chosen_trial=row.chosen_trial,
        )

    def summaries(self) -> list[StudySummary]:
        """Every study of schedules, oldest first; those that belong to Optuna alone are left out."""
        ended = [state.value for state in _ENDED]
        counts = (
            sa.select(_trial.study_id, sa.func.count().label("n"))
            .where(_trial.state.in_(ended))
            .group_by(_trial.study_id)
            .subquery()
        )
        columns = (_study.name, schema.search_run, sa.func.coalesce(counts.c.n, 0).label("n_trials"))
        joined = schema.search_run.join(schema.study).outerjoin(counts, counts.c.study_id == _study.id)
        selected = sa.select(*columns).select_from(joined).order_by(_study.id)

        def work(connection: Connection) -> list[StudySummary]:
            return [
                StudySummary(
                    name=row.name,
                    state=_state(row.state, holder(connection, row.study_id)),
                    n_trials=row.n_trials,
                    created_at=row.created_at,
                    model=str(row.config.get("model", "")),
                    data=str(row.config.get("data", "")),
                )
                for row in connection.execute(selected).all()
            ]

        return self._database.read(work)

    def lease(self, name: str) -> Lease:
        """The right to work on a study, to be held with `with`; trials of a dead process return to the queue.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        return Lease(self._database, self._of_study(name, lambda _, study_id: study_id), name)

    def delete_study(self, name: str) -> None:
        """Remove a study with everything it remembers; its artifacts stay, since other studies may share them.

        Raises:
            StudyBusyError: A process works on it.
        """
        with self.lease(name):
            self.storage.delete_study(self._of_study(name, lambda _, study_id: study_id))
        del self._ids[name]

    def set_state(self, name: str, state: StudyState) -> None:
        """Record where a study stands."""
        self._update(name, state=state.value)

    def set_config(self, name: str, config: Mapping[str, Any]) -> None:
        """Replace a study's configuration."""
        self._update(name, config=dict(config))

    def choose_trial(self, name: str, number: int) -> None:
        """Record which trial was chosen from the front."""
        self._update(name, chosen_trial=number)

    def set_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Add facts to those that the study knows; equal keys are replaced."""

        def work(connection: Connection, study_id: int) -> None:
            where = _run.study_id == study_id
            known = connection.execute(sa.select(_run.facts).where(where).with_for_update()).scalar_one()
            connection.execute(sa.update(schema.search_run).where(where).values(facts={**known, **facts}))

        self._of_study(name, work, write=True)

    def begin_stage(self, name: str, stage: str) -> None:
        """Record that a stage of the pipeline runs, in the place of its last run."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> None:
            connection.execute(sa.delete(table).where(table.c.study_id == study_id, table.c.name == stage))
            row = {"study_id": study_id, "name": stage, "state": StudyState.RUNNING.value}
            connection.execute(sa.insert(table), {**row, "began_at": datetime.now(UTC)})

        self._of_study(name, work, write=True)

    def end_stage(self, name: str, stage: str, state: StudyState) -> None:
        """Record how a stage that was begun ended."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> None:
            where = sa.and_(table.c.study_id == study_id, table.c.name == stage)
            connection.execute(sa.update(table).where(where).values(state=state.value, ended_at=datetime.now(UTC)))

        self._of_study(name, work, write=True)

    def stages(self, name: str) -> list[StageRecord]:
        """The stages that a study has been through, in the order in which they began."""
        table = schema.stage

        def work(connection: Connection, study_id: int) -> list[StageRecord]:
            selected = sa.select(table).where(table.c.study_id == study_id).order_by(table.c.began_at)
            held = holder(connection, study_id)
            return [
                StageRecord(row.name, _state(row.state, held), row.began_at, row.ended_at)
                for row in connection.execute(selected)
            ]

        return self._of_study(name, work)

    def keep_proposer_states(self, name: str, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what these proposers, by name, have to remember, instead of what was kept of them before."""
        table = schema.proposer_state

        def work(connection: Connection, study_id: int) -> None:
            where = sa.and_(table.c.study_id == study_id, table.c.proposer.in_(list(states)))
            connection.execute(sa.delete(table).where(where))
            now = datetime.now(UTC)
            rows = [
                {"study_id": study_id, "proposer": proposer, "state": dict(state), "updated_at": now}
                for proposer, state in states.items()
            ]
            connection.execute(sa.insert(table), rows)

        if states:
            self._of_study(name, work, write=True)

    def proposer_states(self, name: str) -> list[ProposerState]:
        """What the proposers of a study keep there, by name."""
        table = schema.proposer_state

        def work(connection: Connection, study_id: int) -> list[ProposerState]:
            selected = sa.select(table).where(table.c.study_id == study_id).order_by(table.c.proposer)
            return [ProposerState(row.proposer, row.state, row.updated_at) for row in connection.execute(selected)]

        return self._of_study(name, work)

    def latency_profile(self, fingerprint: str) -> Mapping[str, Any] | None:
        """The latency profile that was measured under these conditions; None if there is none."""
        table = schema.latency_profile.c
        selected = sa.select(table.profile).where(table.fingerprint == fingerprint)
        return self._database.read(lambda connection: connection.execute(selected).scalar())

    def keep_latency_profile(
        self, fingerprint: str, conditions: Mapping[str, Any], profile: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Keep a latency profile for every study of this database.

        Args:
            fingerprint: Hash of the conditions.
            conditions: Model, machine and software that it holds for.
            profile: The profile.

        Returns:
            The profile that is kept: an earlier one, if another process was faster.
        """
        table = schema.latency_profile
        row = {
            "fingerprint": fingerprint,
            "conditions": dict(conditions),
            "profile": dict(profile),
            "created_at": datetime.now(UTC),
        }
        try:
            self._database.write(lambda connection: connection.execute(sa.insert(table), row))
        except sa.exc.IntegrityError:
            return self.latency_profile(fingerprint) or profile
        return profile

    def begin_trial(self, name: str, schedule: Sequence[float], proposer: str) -> int:
        """Record that a schedule is being evaluated: if its process dies, the next one finds it in the queue.

        Returns:
            The trial's number.
        """

        def work(connection: Connection, study_id: int) -> int:
            row = {
                "state": OptunaState.RUNNING.value,
                "params": self._packed(connection, study_id, schedule),
                "user_attributes": json.dumps({"proposer": proposer}),
                "started_at": datetime.now().isoformat(),
            }
            number = next_number(connection, study_id)
            connection.execute(_INSERT, {"study_id": study_id, "number": number, **row})
            return number

        return self._of_study(name, work, write=True)

    def finish_trial(self, name: str, trial: TrialRecord) -> bool:
        """Keep the result of a trial that was begun.

        Returns:
            Whether it was kept: a trial that has ended already stays as it is.

        Raises:
            ValueError: It is marked as finished without finite values.
        """
        _check_finite(trial)
        changed = _ended_columns(trial)

        def work(connection: Connection, study_id: int) -> bool:
            bound = {"of_study": study_id, "of_number": trial.number, **changed}
            return connection.execute(_FINISH, bound).rowcount == 1

        return self._of_study(name, work, write=True)

    def claim_queue(self, name: str) -> list[QueuedTrial]:
        """Take every trial that waits, by number: they are running then, and nobody else takes them."""

        def work(connection: Connection, study_id: int) -> list[QueuedTrial]:
            waiting = sa.and_(_trial.study_id == study_id, _trial.state == OptunaState.WAITING.value)
            rows = connection.execute(sa.select(schema.trial).where(waiting).order_by(_trial.number)).all()
            claimed = [_queued(self.storage.spaces.frozen(connection, row)) for row in rows]
            if rows:
                begun = {"state": OptunaState.RUNNING.value, "started_at": datetime.now().isoformat()}
                connection.execute(
                    sa.update(schema.trial).where(_trial.id.in_([row.id for row in rows])).values(**begun)
                )
            return [trial for trial in claimed if trial is not None]

        return self._of_study(name, work, write=True)

    def append_trial(self, name: str, trial: TrialRecord) -> None:
        """Keep a trial that was evaluated elsewhere, in one transaction.

        Raises:
            StorageError: Its number is not the study's next one.
            ValueError: It is marked as finished without finite values.
        """
        _check_finite(trial)

        def work(connection: Connection, study_id: int) -> None:
            number = next_number(connection, study_id)
            if number != trial.number:
                has = (
                    f"has a trial {trial.number} already" if number > trial.number else f"ends with trial {number - 1}"
                )
                raise StorageError(
                    f"Study {name!r} {has}: trials are numbered without gaps, and the next one is {number}. Is another "
                    "process working on it?"
                )
            row = {"study_id": study_id, "number": number, "params": self._packed(connection, study_id, trial.schedule)}
            connection.execute(_INSERT, {**row, **_ended_columns(trial)})

        self._of_study(name, work, write=True)

    def trials(self, name: str) -> list[TrialRecord]:
        """Every trial that has ended, by number."""
        study_id = self._of_study(name, lambda _, study_id: study_id)
        try:
            found = self.storage.get_all_trials(study_id, deepcopy=False, states=tuple(_ENDED))
        except KeyError:
            raise self._not_found(name) from None
        records = (_record(trial) for trial in found)
        return [record for record in records if record is not None]

    def trial(self, name: str, number: int) -> TrialRecord:
        """One trial that has ended.

        Raises:
            StorageError: There is none of this number.
        """
        found = next((trial for trial in self.trials(name) if trial.number == number), None)
        if found is None:
            raise StorageError(f"Study {name!r} in {self} has no trial {number} that ended.")
        return found

    def n_trials(self, name: str) -> int:
        """How many trials have ended, failed ones included."""

        def work(connection: Connection, study_id: int) -> int:
            where = sa.and_(_trial.study_id == study_id, _trial.state.in_([state.value for state in _ENDED]))
            n: int = connection.execute(sa.select(sa.func.count()).select_from(schema.trial).where(where)).scalar_one()
            return n

        return self._of_study(name, work)

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
        """Keep a distilled router: its weights among the artifacts first, then the rest of it.

        Raises:
            StorageError: The weights cannot be written, or their hash is not the one that they are said to have.
        """
        if self._artifacts.put(run.weights) != run.sha256:
            raise StorageError(f"The router's weights do not have the hash {run.sha256}: hand over both of one router.")
        row = asdict(run) | {"config": dict(run.config), "curves": dict(run.curves)}
        del row["weights"]
        self._of_study(
            name,
            lambda connection, study_id: connection.execute(
                sa.insert(schema.router_run), {"study_id": study_id, **row}
            ),
            write=True,
        )

    def router_runs(self, name: str) -> list[RouterRun]:
        """Every router of a study, oldest first.

        Raises:
            StorageError: The weights of one are missing, or are not those that were stored.
        """
        table = schema.router_run

        def work(connection: Connection, study_id: int) -> Sequence[Row[Any]]:
            return connection.execute(sa.select(table).where(table.c.study_id == study_id).order_by(table.c.id)).all()

        runs = []
        for row in self._of_study(name, work):
            fields = row._asdict()
            del fields["id"], fields["study_id"]
            runs.append(RouterRun(weights=self._artifacts.get(row.sha256), **fields))
        return runs

    def latest_router(self, name: str) -> RouterRun | None:
        """The router that was stored last."""
        runs = self.router_runs(name)
        return runs[-1] if runs else None

    def _packed(self, connection: Connection, study_id: int, schedule: Sequence[float]) -> bytes:
        key = (study_id, len(schedule))
        ids = self._block_ids.get(key)
        if ids is None:
            names, spaces = _block_names(len(schedule)), self.storage.spaces
            ids = tuple(spaces.intern(connection, study_id, name, _SPARSITY) for name in names)
            # Only what is in the database whatever becomes of this transaction.
            if all(spaces.known(study_id, name, _SPARSITY) is not None for name in names):
                self._block_ids[key] = ids
        return pack_params(ids, tuple(schedule))

    def _of_study(self, name: str, work: Callable[[Connection, int], T], write: bool = False) -> T:
        """Run `work` in a transaction with a study's id.

        Raises:
            StudyNotFoundError: There is no such study of schedules.
        """

        def with_id(connection: Connection) -> T:
            if name not in self._ids:
                joined = schema.study.join(schema.search_run)
                found = connection.execute(sa.select(_study.id).select_from(joined).where(_study.name == name)).scalar()
                if found is None:
                    raise self._not_found(name, connection)
                self._ids[name] = found
            return work(connection, self._ids[name])

        return self._database.write(with_id) if write else self._database.read(with_id)

    def _update(self, name: str, **values: Any) -> None:
        self._of_study(
            name,
            lambda connection, study_id: connection.execute(
                sa.update(schema.search_run).where(_run.study_id == study_id).values(**values)
            ),
            write=True,
        )

    def _not_found(self, name: str, connection: Connection | None = None) -> StudyNotFoundError:
        self._ids.pop(name, None)
        selected = sa.select(_study.name).join(schema.search_run)
        if connection is None:
            names = self._database.read(lambda connection: list(connection.execute(selected).scalars()))
        else:
            names = list(connection.execute(selected).scalars())
        shown = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
        there = f"there are {', '.join(map(repr, shown))}" if shown else "it holds none"
        more = "; `ftp-search studies` lists all" if len(names) > len(shown) else ""
        return StudyNotFoundError(f"There is no study {name!r} in {self}: {there}{more}.")


_INSERT = sa.insert(schema.trial)
# A trial that was returned to the queue meanwhile may be ended too: the result is as good.
_FINISH = (
    sa.update(schema.trial)
    .where(
        _trial.study_id == sa.bindparam("of_study"),
        _trial.number == sa.bindparam("of_number"),
        _trial.state.in_([OptunaState.RUNNING.value, OptunaState.WAITING.value]),
    )
    .values({name: sa.bindparam(name) for name in ("state", "objective_values", "user_attributes", "completed_at")})
)


def _state(stored: str, held: Holder | None) -> StudyState:
    """Where a study stands: one that runs without anybody who runs it was stopped."""
    state = StudyState(stored)
    if state is StudyState.RUNNING and (held is None or not held.alive):
        return StudyState.STOPPED
    return state


def _check_finite(trial: TrialRecord) -> None:
    finite = trial.values is not None and all(map(math.isfinite, trial.values))
    if trial.state is TrialState.FINISHED and not finite:
        raise ValueError(f"Trial {trial.number} is finished, but its values are {trial.values}: record it as failed.")


def _ended_columns(trial: TrialRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "proposer": trial.proposer,
        "fidelity": trial.fidelity,
        "seconds": trial.seconds,
        "finished_at": trial.finished_at.astimezone(UTC).isoformat(),
        "metrics": dict(trial.metrics),
    }
    if trial.error is not None:
        attributes["error"] = trial.error
    return {
        "state": _STATES[trial.state].value,
        "objective_values": None if trial.values is None else pack_floats(trial.values),
        "user_attributes": json.dumps(attributes),
        # Optuna's times are local, without a zone.
        "completed_at": trial.finished_at.astimezone().replace(tzinfo=None).isoformat(),
    }


@cache
def _block_names(n: int) -> tuple[str, ...]:
    return tuple(f"{_PREFIX}{index}" for index in range(n))


def _schedule(trial: FrozenTrial) -> tuple[float, ...] | None:
    """The schedule that a trial's parameters are; None if they are something else."""
    params = trial.params
    names = _block_names(len(params))
    if tuple(params) == names:
        return tuple(params.values()) or None
    return tuple(params[name] for name in names) if all(name in params for name in names) else None


def _queued(trial: FrozenTrial) -> QueuedTrial | None:
    schedule = _schedule(trial)
    if schedule is None:
        return None
    return QueuedTrial(trial.number, schedule, str(trial.user_attrs.get("proposer", "optuna")))


def _record(trial: FrozenTrial) -> TrialRecord | None:
    """A trial of ours, or one that an Optuna sampler added; None if its parameters are no schedule."""
    schedule, attributes = _schedule(trial), trial.user_attrs
    if schedule is None:
        return None
    assert trial.datetime_complete is not None
    finished_at = attributes.get("finished_at")
    return TrialRecord(
        number=trial.number,
        schedule=schedule,
        values=None if trial.values is None else tuple(trial.values),
        state=_ENDED[trial.state],
        fidelity=attributes.get("fidelity", 1.0),
        proposer=attributes.get("proposer", "optuna"),
        seconds=attributes.get("seconds", 0.0),
        finished_at=(
            trial.datetime_complete.astimezone(UTC) if finished_at is None else datetime.fromisoformat(finished_at)
        ),
        metrics=attributes.get("metrics", {}),
        error=attributes.get("error"),
    )

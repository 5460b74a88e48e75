"""The tables: one row a study, one row a trial. `studies/sql/migrations` says how they came to be."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import JSON, Column, Dialect, ForeignKey, Index, Integer, LargeBinary, SmallInteger, String, Table, Text

from studies.records.halves import Halves, stored
from studies.sql.packing import pack_floats, unpack_floats
from studies.sql.times import UtcTime

# The last of studies/sql/migrations/versions.
HEAD = "0006"
_HAS_HALVES = -1.0


class PackedFloats(sa.TypeDecorator[tuple[float, ...]]):
    """A tuple of floats as little-endian float64: exact, eight bytes a value, and no parser between row and array."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: Dialect) -> bytes | None:
        """To the database."""
        return None if value is None else pack_floats(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[float, ...] | None:
        """From the database."""
        return None if value is None else unpack_floats(value)


class PackedSchedule(PackedFloats):
    """A schedule; one with halves has -1 before its numbers, so that it is none of more blocks."""

    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: Dialect) -> bytes | None:
        """To the database."""
        if value is not None and isinstance(one := stored(value), Halves):
            return pack_floats((_HAS_HALVES, *one))
        return super().process_bind_param(value, dialect)

    def process_result_value(self, value: Any, dialect: Dialect) -> tuple[float, ...] | None:
        """From the database."""
        read = super().process_result_value(value, dialect)
        return Halves(read[1:]) if read and read[0] == _HAS_HALVES else read


metadata = sa.MetaData()

# Alembic's own table: which revision of the schema this database has.
alembic_version = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # optuna.study.StudyDirection, one number an objective.
    Column("directions", JSON, nullable=False),
    # Counts trials ever created: whoever adds one holds this row's lock, so numbers have no gaps.
    Column("n_trials", Integer, nullable=False),
    sqlite_autoincrement=True,
)


def _study_id() -> Column[int]:
    return Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), nullable=False, index=True)


study_attribute = Table(
    "study_attribute",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(8), primary_key=True),  # "user" or "system"
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# Each distribution that a study's parameters were drawn from, kept once; trials refer to it by number.
distribution = Table(
    "distribution",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_id(),
    Column("name", Text, nullable=False),
    Column("definition", Text, nullable=False),
    sqlite_autoincrement=True,
)

trial = Table(
    "trial",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),  # optuna.trial.TrialState
    Column("params", LargeBinary, nullable=False),
    Column("objective_values", LargeBinary),
    Column("intermediate_values", LargeBinary),
    # JSON as text, since Optuna's attributes may hold NaN; NULL where there are none.
    Column("user_attributes", Text),
    Column("system_attributes", Text),
    Column("started_at", UtcTime),
    Column("completed_at", UtcTime),
    sa.UniqueConstraint("study_id", "number", name="uq_trial_number"),
    sqlite_autoincrement=True,
)
# Only trials that wait or run are in it: finding them costs the same however many have finished.
Index(
    "ix_trial_unfinished",
    trial.c.study_id,
    trial.c.state,
    sqlite_where=trial.c.state.in_([0, 4]),
    postgresql_where=trial.c.state.in_([0, 4]),
)

# What this program knows of a study beyond Optuna: how it is configured, where it stands.
search_run = Table(
    "search_run",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("config", JSON, nullable=False),
    Column("objectives", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("chosen_trial", Integer),
)

# What people say of a study, and the sweep that made it; no row for one without any.
label = Table(
    "label",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("tags", JSON, nullable=False),
    Column("note", Text, nullable=False),
    Column("sweep", Text),
)

# The last run of each stage of a study's pipeline.
stage = Table(
    "stage",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("began_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
)

# What each proposer has done in a study, in its own words.
proposer_state = Table(
    "proposer_state",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("proposer", String(64), primary_key=True),
    Column("state", JSON, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

# Who works on a study now.
lease = Table(
    "lease",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("owner", String(36), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    # Seconds since 1970 by the database's clock.
    Column("acquired_at", sa.Float(53), nullable=False),
    Column("renewed_at", sa.Float(53), nullable=False),
)

# Shared by all studies of a database: the same model on the same machine is profiled once.
latency_profile = Table(
    "latency_profile",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("conditions", JSON, nullable=False),
    Column("profile", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

# Shared by all studies of a database: a schedule that was evaluated under the same circumstances is known.
evaluation = Table(
    "evaluation",
    metadata,
    # Hash of model, search set and router.
    Column("context", String(64), primary_key=True),
    Column("schedule", PackedSchedule, primary_key=True),
    Column("metrics", JSON, nullable=False),
)

measurement = Table(
    "measurement",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_id(),
    Column("schedule", PackedSchedule, nullable=False),
    Column("figures", JSON, nullable=False),
)

router_run = Table(
    "router_run",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_id(),
    Column("trial", Integer, nullable=False),
    Column("schedule", PackedSchedule, nullable=False),
    Column("config", JSON, nullable=False),
    Column("curves", JSON, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("seconds", sa.Float, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("weights", LargeBinary, nullable=False),
)

# Maps that stand in for what tokens skip, which results rest on to the last digit.
substitute = Table(
    "substitute",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("block", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("weights", LargeBinary, nullable=False),
)

# Token ids of prompts that keys and values of skipped tokens are fitted to.
fitted_prompts = Table(
    "fitted_prompts",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("prompts", JSON, nullable=False),
)

# What a report shows of single prompts and items, one row a kind; kept because drawing it again needs the model.
example = Table(
    "example",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("content", JSON, nullable=False),
)

# What other methods come to on a study's model and test items.
comparison = Table(
    "comparison",
    metadata,
    Column("id", Integer, primary_key=True),
    _study_id(),
    Column("method", String(64), nullable=False),
    Column("match", String(16), nullable=False),
    Column("target", sa.Float(53), nullable=False),
    Column("seed", Integer, nullable=False),
    # Hash of model, test items and timed input.
    Column("context", String(64), nullable=False),
    Column("content", JSON, nullable=False),
)

# A study that the service's runners shall run, and what became of that.
submission = Table(
    "submission",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("state", String(16), nullable=False),  # "queued", "claimed" or "ended"
    # Seconds since 1970 by the database's clock: the order of the queue.
    Column("submitted_at", sa.Float(53), nullable=False),
    Column("submitted_by", Text),
    Column("runner", String(36)),
    # Settings that change before the study goes on.
    Column("changes", JSON, nullable=False),
    Column("stop_requested", sa.Boolean, nullable=False),
    # Runners that died over it in a row while `progress` stayed the same.
    Column("deaths", Integer, nullable=False),
    Column("progress", Integer, nullable=False),
    # Counts events ever kept: whoever adds one holds this row's lock, so numbers have no gaps.
    Column("n_events", Integer, nullable=False),
    Column("error", Text),
    # What the study is to be compared with; NULL for its pipeline to go on.
    Column("comparison", JSON(none_as_null=True)),
)

# What a runner tells of a study's run.
run_event = Table(
    "run_event",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", sa.Float(53), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("content", JSON, nullable=False),
)

# The processes that run submitted studies.
runner = Table(
    "runner",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    # Seconds since 1970 by the database's clock.
    Column("began_at", sa.Float(53), nullable=False),
    Column("seen_at", sa.Float(53), nullable=False),
    Column("study_id", ForeignKey("study.id", ondelete="SET NULL")),
)

# Who may use the service. Secrets are random, and only their SHA-256 is kept.
access_token = Table(
    "access_token",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    sqlite_autoincrement=True,
)

# Browsers whose users have shown a token.
browser_session = Table(
    "browser_session",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("token_id", ForeignKey("access_token.id", ondelete="CASCADE"), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("expires_at", sa.Float(53), nullable=False),
)

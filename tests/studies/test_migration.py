"""A database that any earlier program wrote becomes one of today's, and nothing in it is lost."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ftp_core.routers import router_from_bytes
from studies import StorageError, StudyState, StudyStore, current_revision, front, schema, upgrade_database
from studies.database import Database

# Each was written by the program of its revision.
DATABASES = sorted((Path(__file__).parent / "databases").glob("*.db"))


@pytest.fixture(params=DATABASES, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(request.param, tmp_path / "old.db"))


def test_there_is_a_database_of_every_earlier_revision() -> None:
    assert [path.stem for path in DATABASES] == [f"{n:04}" for n in range(1, int(schema.HEAD))]


def test_an_older_database_says_what_to_do_and_is_left_alone(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(StorageError, match="ftp-search db upgrade --storage sqlite:///.*old.db"):
        StudyStore(f"sqlite:///{old}")
    assert old.read_bytes() == before


def test_upgrading_keeps_everything(old: Path) -> None:
    url = f"sqlite:///{old}"
    with sqlite3.connect(old) as raw:
        values = dict(raw.execute("SELECT number, objective_values FROM trial WHERE study_id = 1"))
    assert upgrade_database(url) == ("0001", schema.HEAD)
    with StudyStore(url, create=False) as store:
        assert [(s.name, s.n_trials, s.state) for s in store.summaries()] == [
            ("small", 12, StudyState.FINISHED),
            ("begun", 5, StudyState.FINISHED),
        ]
        trials = store.trials("small")
        assert [trial.number for trial in trials] == list(range(12))
        assert {trial.number: _packed(trial.values) for trial in trials} == values
        assert {trial.proposer for trial in trials} == {"deap", "tpe"}
        study = store.study("small")
        assert study.config["trials"] == 12 and study.objectives == ("kl", "latency_ms")
        assert study.chosen_trial in [point.number for point in front(trials)]
        router = store.latest_router("small")
        assert router is not None and router.trial == study.chosen_trial
        router_from_bytes(router.weights)
        assert {m.variant for m in store.measurements("small")} == {"dense", "uniform", "static", "dynamic"}
        assert store.begin_trial("begun", (0.5,) * 12, "deap") == 5
    assert upgrade_database(url) == (schema.HEAD, schema.HEAD)


def _packed(values: tuple[float, ...] | None) -> bytes | None:
    return schema.PackedFloats().process_bind_param(values, sa.engine.default.DefaultDialect())


def test_a_newer_database_is_not_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    StudyStore(url).close()
    with sqlite3.connect(tmp_path / "new.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    for call in (StudyStore, upgrade_database):
        with pytest.raises(StorageError, match="9999, which a newer program wrote"):
            call(url)
    assert current_revision(url) == "9999"


def test_revisions_lead_to_the_schema_that_the_program_makes(database_url: str) -> None:
    Database(database_url, any_revision=True).close()
    upgrade_database(database_url)
    engine = sa.create_engine(database_url)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
        by_revisions = _described(connection)
    with engine.begin() as connection:
        schema.metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
        schema.metadata.create_all(connection)
        made = _described(connection)
    engine.dispose()
    assert differences == []
    assert by_revisions == made


def _described(connection: sa.Connection) -> dict[str, object]:
    inspector = sa.inspect(connection)
    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted((i["name"], i["column_names"]) for i in inspector.get_indexes(table)),
            [(k["constrained_columns"], k["options"]) for k in inspector.get_foreign_keys(table)],
        )
        for table in sorted(inspector.get_table_names())
    }

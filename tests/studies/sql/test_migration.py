"""A database that any earlier program wrote becomes one of today's, and nothing in it is lost."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import optuna
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ftp_core.routers import router_from_bytes
from studies import StorageError, StudyState, StudyStore, current_revision, front, upgrade_database
from studies.sql import schema
from studies.sql.database import Database
from studies.sql.migration import alembic_config
from tests.studies.postgres import PostgresServer
from tests.studies.records import running
from tests.studies.zones import in_zone

# Each was written by the program of its revision, with its artifacts beside it.
DATABASES = sorted((Path(__file__).parent / "databases").glob("*.db"))


@pytest.fixture(params=DATABASES, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file: Path = request.param
    artifacts = file.with_name(f"{file.name}-artifacts")
    if artifacts.is_dir():
        shutil.copytree(artifacts, tmp_path / "old.db-artifacts")
    return Path(shutil.copy(file, tmp_path / "old.db"))


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request: pytest.FixtureRequest, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of an earlier revision, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{old}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    monkeypatch.setenv("FTP_SEARCH_ARTIFACTS", str(tmp_path / "old.db-artifacts"))
    url = server.new_database()
    _move_to_postgresql(old, url)
    return url


def _move_to_postgresql(old: Path, url: str) -> None:
    """Make the tables that the revisions of `old` made, and fill them with its rows."""
    revision = current_revision(f"sqlite:///{old}")
    assert revision is not None
    database = Database(url, any_revision=True)
    database.write(lambda connection: command.upgrade(alembic_config(connection, database), revision))
    source = sa.create_engine(f"sqlite:///{old}")
    tables = sa.MetaData()
    tables.reflect(source)

    def fill(connection: sa.Connection) -> None:
        if "alembic_version" not in tables.tables:
            connection.execute(sa.text("DROP TABLE alembic_version"))
        for table in tables.sorted_tables:
            connection.execute(sa.text(f"DELETE FROM {table.name}"))
            with source.connect() as read:
                rows = [row._asdict() for row in read.execute(sa.select(table))]
            if rows:
                connection.execute(sa.insert(table), rows)
            # What follows gets the ids that would have followed.
            if "id" in table.c and rows:
                top = max(row["id"] for row in rows)
                sequence = sa.func.pg_get_serial_sequence(table.name, "id")
                connection.execute(sa.select(sa.func.setval(sequence, top)))

    database.write(fill)
    source.dispose()
    database.close()


def test_there_is_a_database_of_every_earlier_revision() -> None:
    assert [path.stem for path in DATABASES] == [f"{n:04}" for n in range(1, int(schema.HEAD))]


def test_an_older_database_says_what_to_do_and_is_left_alone(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(StorageError, match="ftp-search db upgrade --storage sqlite:///.*old.db"):
        StudyStore(f"sqlite:///{old}")
    assert old.read_bytes() == before


def test_upgrading_keeps_everything(old: Path, old_url: str) -> None:
    before = current_revision(old_url)
    with sqlite3.connect(old) as raw:
        [begun] = raw.execute("SELECT count(*) FROM trial WHERE study_id = 2").fetchone()
        values = dict(raw.execute("SELECT number, objective_values FROM trial WHERE study_id = 1"))
    raw.close()
    assert upgrade_database(old_url) == (before, schema.HEAD)
    with StudyStore(old_url, create=False) as store:
        assert [(s.name, s.n_trials, s.state) for s in store.studies.summaries()][:2] == [
            ("small", 12, StudyState.FINISHED),
            ("begun", 5, StudyState.FINISHED),
        ]
        trials = store.trials.of("small")
        assert [trial.number for trial in trials] == list(range(12))
        assert {trial.number: _packed(trial.values) for trial in trials} == values
        assert {trial.proposer for trial in trials} == {"deap", "tpe"}
        study = store.studies.get("small")
        assert study.config["trials"] == 12 and study.objectives == ("kl", "latency_ms")
        assert study.chosen_trial in [point.number for point in front(trials)]
        router = store.routers.latest("small")
        assert router is not None and router.trial == study.chosen_trial
        router_from_bytes(router.weights)
        # Files are taken in: nobody needs them any longer.
        shutil.rmtree(old.with_name("old.db-artifacts"), ignore_errors=True)
        assert store.routers.latest("small") == router
        measured = store.results.measurements("small")
        assert {m.variant for m in measured} == {"dense", "uniform", "static", "dynamic"}
        assert all(m.latency_ms > 0 and m.speedup is None for m in measured)
        assert store.trials.begin("begun", [running((0.5,) * 12, "deap")])[0].number == begun
        # New rows of every table find an id that nobody has.
        store.studies.create("new", {}, ("kl",))
        store.results.replace_measurements("new", store.results.measurements("small"))
        store.routers.add("new", router)
        store.runs.keep_proposer_states("new", {"tpe": {"asked": 1}})
    assert upgrade_database(old_url) == (schema.HEAD, schema.HEAD)


@pytest.mark.parametrize("old", DATABASES[4:], ids=lambda path: path.stem, indirect=True)
def test_upgrading_keeps_exhibits(old_url: str) -> None:
    upgrade_database(old_url)
    with StudyStore(old_url, create=False) as store:
        assert store.results.exhibits("small") is not None and store.results.exhibits("begun") is None


@pytest.mark.parametrize("old", DATABASES[1:], ids=lambda path: path.stem, indirect=True)
def test_upgrading_keeps_what_belongs_to_optuna_and_what_was_left_running(old_url: str) -> None:
    upgrade_database(old_url)
    with StudyStore(old_url, create=False) as store:
        with store.runs.lease("begun"):
            assert [(trial.number, trial.proposer) for trial in store.trials.claim_waiting("begun")] == [(5, "tpe")]
        theirs = optuna.load_study(study_name="theirs", storage=store.storage)
        assert theirs.user_attrs == {"note": [1, "two"]}
        assert [trial.state.name for trial in theirs.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
        assert [trial.user_attrs for trial in theirs.trials] == [{"seen": 0}, {"seen": 1}, {"seen": 2}]
        assert all(trial.values == [trial.params["x"], trial.params["n"]] for trial in theirs.trials[1:])
        [pruned] = optuna.load_study(study_name="pruned", storage=store.storage).trials
        assert pruned.intermediate_values[1] == 0.5 and math.isnan(pruned.intermediate_values[2])


# Studies of each database that a search wrote, and by which clock; Optuna's client wrote the others in UTC.
ZONE_OF = {"small": "UTC", "begun": "UTC", "far": "Asia/Tokyo"}
# Before revision 0008 times were local, without saying where.
LOCAL_TIMES = [path for path in DATABASES if path.stem < "0008"]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("old", LOCAL_TIMES[1:], ids=lambda path: path.stem, indirect=True)
def test_times_get_their_zone(old: Path, old_url: str, zone: str) -> None:
    with sqlite3.connect(old) as raw:
        columns = "study.name, number, user_attributes, started_at, completed_at"
        rows = raw.execute(f"SELECT {columns} FROM trial JOIN study ON study_id = study.id").fetchall()
    raw.close()
    with in_zone(zone):
        upgrade_database(old_url)
    with StudyStore(old_url, create=False) as store:
        for name, number, attributes, *local in rows:
            is_ours = "finished_at" in (attributes or "")
            clock = ZoneInfo(ZONE_OF[name] if is_ours else zone)
            moments = [None if text is None else datetime.fromisoformat(text).replace(tzinfo=clock) for text in local]
            trial_id = store.storage.get_trial_id_from_study_id_trial_number(
                store.storage.get_study_id_from_name(name), number
            )
            trial = store.storage.get_trial(trial_id)
            times = [None if t is None else t.astimezone(UTC) for t in (trial.datetime_start, trial.datetime_complete)]
            assert times == moments
            if is_ours:
                said = datetime.fromisoformat(json.loads(attributes)["finished_at"])
                assert store.trials.get(name, number).finished_at == said == moments[1]


@pytest.mark.parametrize(
    ("zone", "local", "said", "expected"),
    [
        # Summer time ended meanwhile, on the clock of the machine that upgrades: 1:30 came twice.
        ("America/New_York", ("01:30:00", "01:15:00"), "06:15:00", ("05:30:00", "06:15:00")),
        ("America/New_York", ("01:30:00", "01:45:00"), "05:45:00", ("05:30:00", "05:45:00")),
        # Nobody says when it ended, but it had begun before.
        ("America/New_York", ("01:30:00", "01:15:00"), None, ("05:30:00", "06:15:00")),
        ("America/New_York", ("01:30:00", None), None, ("05:30:00", None)),
        # Begun by a clock that was ahead of the one by which it ended.
        ("UTC", ("14:15:00", "05:30:00"), "05:30:00", ("05:30:00", "05:30:00")),
        # An attribute that only has the name.
        ("UTC", ("05:15:00", "05:30:00"), "05:31:07", ("05:15:00", "05:30:00")),
        ("UTC", (None, None), None, (None, None)),
    ],
)
def test_times_that_a_clock_shows_twice_or_never_are_taken_as_they_can_have_been(
    tmp_path: Path,
    zone: str,
    local: tuple[str | None, str | None],
    said: str | None,
    expected: tuple[str | None, str | None],
) -> None:
    file = tmp_path / "old.db"
    shutil.copy(LOCAL_TIMES[-1], file)
    stored = [None if one is None else f"2026-11-01T{one}" for one in local]
    attributes = None if said is None else json.dumps({"finished_at": f"2026-11-01T{said}+00:00"})
    with sqlite3.connect(file) as raw:
        row = (*stored, attributes)
        raw.execute("UPDATE trial SET started_at = ?, completed_at = ?, user_attributes = ? WHERE id = 1", row)
    raw.close()
    with in_zone(zone):
        upgrade_database(f"sqlite:///{file}")
    with sqlite3.connect(file) as raw:
        [times] = raw.execute("SELECT started_at, completed_at FROM trial WHERE id = 1").fetchall()
    raw.close()
    assert times == tuple(None if one is None else f"2026-11-01T{one}.000000+00:00" for one in expected)


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

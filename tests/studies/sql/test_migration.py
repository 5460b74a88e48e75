"""A database of another revision is refused and left alone; revisions lead to the schema that the program makes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from studies import StorageError, StudyStore
from studies.records.labels import Labels
from studies.sql import schema
from studies.sql.database import Database
from studies.sql.migration import current_revision, upgrade_database


def of_revision(file: Path, revision: str) -> str:
    """URL of a database, made if missing, that says it has this revision."""
    url = f"sqlite:///{file}"
    if not file.exists():
        StudyStore(url).close()
    with sqlite3.connect(file) as raw:
        raw.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    raw.close()
    return url


def test_an_older_database_says_what_to_do_and_is_left_alone(tmp_path: Path) -> None:
    url = of_revision(tmp_path / "old.db", "0000")
    before = (tmp_path / "old.db").read_bytes()
    with pytest.raises(StorageError, match="ftp-search db upgrade --storage sqlite:///.*old.db"):
        StudyStore(url)
    # There is no such revision.
    with pytest.raises(StorageError, match="cannot be upgraded: .*'0000'.* It is left as it was"):
        upgrade_database(url)
    assert (tmp_path / "old.db").read_bytes() == before


def test_a_newer_database_is_not_touched(tmp_path: Path) -> None:
    url = of_revision(tmp_path / "new.db", "9999")
    for call in (StudyStore, upgrade_database):
        with pytest.raises(StorageError, match="9999, which a newer program wrote"):
            call(url)
    assert current_revision(url) == "9999"


def test_studies_of_the_first_schema_stay_what_they_were(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'first.db'}"
    with StudyStore(url) as store:
        store.studies.create("one", {"trials": 3}, ("kl",))
    with sqlite3.connect(tmp_path / "first.db") as raw:
        raw.execute("DROP TABLE substitute")
        raw.execute("DROP TABLE label")
        raw.execute("DROP TABLE fitted_prompts")
        raw.execute("DROP TABLE comparison")
        raw.execute("ALTER TABLE submission DROP COLUMN comparison")
    raw.close()
    of_revision(tmp_path / "first.db", "0001")
    with pytest.raises(StorageError, match="db upgrade"):
        StudyStore(url)
    assert upgrade_database(url) == ("0001", schema.HEAD)
    with StudyStore(url, create=False) as store:
        assert store.studies.get("one").config == {"trials": 3}
        assert store.substitutes.of("one") == [] and store.comparisons.of("one") == []
        assert store.fitted_prompts.of("one") == []
        assert store.studies.get("one").labels == Labels()
        assert store.studies.label("one", ["old"]) == store.studies.get("one").labels == Labels(("old",))


def test_revisions_lead_to_the_schema_that_the_program_makes(database_url: str) -> None:
    Database(database_url, any_revision=True).close()
    assert upgrade_database(database_url) == (None, schema.HEAD)
    assert upgrade_database(database_url) == (schema.HEAD, schema.HEAD)
    StudyStore(database_url, create=False).close()
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
            sorted(u["column_names"] for u in inspector.get_unique_constraints(table)),
            [(k["constrained_columns"], k["options"]) for k in inspector.get_foreign_keys(table)],
        )
        for table in sorted(inspector.get_table_names())
    }

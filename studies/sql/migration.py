"""Brings the schema of a database up to date, revision by revision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from studies.errors import StorageError
from studies.sql import schema
from studies.sql.database import Database, schema_revision

if TYPE_CHECKING:
    from alembic.config import Config

_SCRIPTS = Path(__file__).parent / "migrations"


def current_revision(url: str) -> str | None:
    """The schema revision of a database; None if it has no tables yet.

    Raises:
        StorageError: The database cannot be opened.
    """
    database = Database(url, create=False, any_revision=True)
    try:
        return database.read(schema_revision)
    finally:
        database.close()


def upgrade_database(url: str) -> tuple[str | None, str]:
    """Brings a database to this program's revision, in one transaction: it is changed as a whole, or not at all.

    Args:
        url: URL of the database.

    Returns:
        The revisions before and after.

    Raises:
        StorageError: It cannot be opened, or a newer program wrote it.
    """
    # Every command imports this module, and hardly any needs Alembic.
    from alembic import command
    from alembic.util import CommandError

    database = Database(url, create=False, any_revision=True)

    def work(connection: Connection) -> str | None:
        before = schema_revision(connection)
        if before is not None and before > schema.HEAD:
            raise StorageError(
                f"The database {database} has schema revision {before}, which a newer program wrote, and this one "
                f"knows {schema.HEAD}: use that program; the database is left as it is."
            )
        command.upgrade(_alembic_config(connection, database), schema.HEAD)
        return before

    try:
        return database.write(work), schema.HEAD
    except CommandError as error:
        raise StorageError(f"The database {database} cannot be upgraded: {error}. It is left as it was.") from error
    finally:
        database.close()


def _alembic_config(connection: Connection, database: Database) -> Config:
    """Configuration with which Alembic's commands work in an open transaction of a database."""
    from alembic.config import Config

    config = Config()
    # Alembic reads a % as the start of a reference.
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

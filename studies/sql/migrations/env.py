"""Runs revisions on the connection that `studies.sql.migration` hands over, inside its transaction."""

from alembic import context

from studies.sql import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    # SQLite can undo what it did to tables, too.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()

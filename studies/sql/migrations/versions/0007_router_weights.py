"""Weights of routers are in the database, where every machine that works on a study finds them."""

import sqlalchemy as sa
from alembic import context, op

from studies.errors import StorageError
from studies.store.artifacts import ArtifactStore, artifact_folder

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Take in the files; what is not there may lie on another machine, and is still read from a file if it turns up."""
    op.add_column("router_run", sa.Column("weights", sa.LargeBinary))
    artifacts = ArtifactStore(artifact_folder(context.config.attributes["url"]))
    runs = sa.table("router_run", sa.column("id"), sa.column("sha256"), sa.column("weights"))
    connection = op.get_bind()
    for number, sha256 in connection.execute(sa.select(runs.c.id, runs.c.sha256)).all():
        try:
            weights = artifacts.get(sha256)
        except StorageError:
            continue
        connection.execute(sa.update(runs).where(runs.c.id == number).values(weights=weights))

"""Runners compare other methods with a study's schedules, too."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Makes the column; what was submitted before is to go on."""
    op.add_column("submission", sa.Column("comparison", sa.JSON(none_as_null=True)))

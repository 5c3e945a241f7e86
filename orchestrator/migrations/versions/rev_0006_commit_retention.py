"""What a stored version answered to the retention quiz, which is not quite what was evaluated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("commits", sa.Column("retention_after", sa.LargeBinary))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("commits", "retention_after")

"""What judges said, by the question they were asked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "judge_verdicts",
        sa.Column("asked", sa.String(64), primary_key=True),
        sa.Column("judge", sa.Text, nullable=False),
        sa.Column("verdict", sa.Float, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("judge_verdicts")

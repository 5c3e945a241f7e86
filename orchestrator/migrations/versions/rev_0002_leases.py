"""Leases of runs, settings as they were resolved, added rounds, replicas, and how busy everyone was."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"

_TEXT: dict[str, Any] = {"nullable": False, "server_default": ""}
_NUMBER: dict[str, Any] = {"nullable": False, "server_default": "0"}


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("runs", sa.Column("resolved_yaml", sa.Text, **_TEXT))
    op.add_column("runs", sa.Column("extra_rounds", sa.Integer, **_NUMBER))
    op.add_column("runs", sa.Column("owner", sa.String(200), **_TEXT))
    op.add_column("runs", sa.Column("leased_until", sa.BigInteger, **_NUMBER))
    op.add_column("runs", sa.Column("epoch", sa.BigInteger, **_NUMBER))
    op.add_column("evaluations", sa.Column("replica", sa.Text, **_TEXT))
    op.create_table(
        "utilisation",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("actor", sa.String(80), primary_key=True),
        sa.Column("busy_s", sa.Float, nullable=False),
        sa.Column("capacity_s", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("utilisation")
    op.drop_column("evaluations", "replica")
    for name in ("epoch", "leased_until", "owner", "extra_rounds", "resolved_yaml"):
        op.drop_column("runs", name)

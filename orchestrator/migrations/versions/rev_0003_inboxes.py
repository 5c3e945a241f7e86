"""Inboxes: documents that wait, windows in which they are worked off, and the runs that do it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "inbox_documents",
        sa.Column("inbox", sa.String(32), primary_key=True),
        sa.Column("task_id", sa.String(200), primary_key=True),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("submitted_at", sa.BigInteger, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_index("inbox_documents_by_state", "inbox_documents", ["inbox", "state", "submitted_at", "position"])
    op.create_table(
        "inbox_windows",
        sa.Column("inbox", sa.String(32), primary_key=True),
        sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("spent", sa.Integer, nullable=False),
        sa.Column("batches", sa.Integer, nullable=False),
    )
    op.create_table(
        "inbox_batches",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("inbox", sa.String(32), nullable=False),
        sa.Column("window_start", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.Integer, nullable=False),
        sa.Column("spent", sa.Integer),
    )
    op.create_index("inbox_batches_by_inbox", "inbox_batches", ["inbox", "spent"])


def downgrade() -> None:
    """Drop them."""
    for name in ("inbox_batches", "inbox_windows", "inbox_documents"):
        op.drop_table(name)

"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("config_yaml", sa.Text, nullable=False),
        sa.Column("retention_quiz", sa.LargeBinary, nullable=False),
        sa.Column("format", sa.LargeBinary, nullable=False),
        sa.Column("teacher", sa.LargeBinary, nullable=False),
        sa.Column("policy_version", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
    )
    op.create_table(
        "run_students",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("student", sa.String(64), primary_key=True),
        sa.Column("description", sa.LargeBinary, nullable=False),
        sa.Column("adapter_version", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "tasks",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.String(200), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "candidates",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.String(200), primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("candidate_id", sa.String(400), nullable=False, unique=True),
        sa.Column("edit", sa.String(64)),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("evaluation_id", sa.String(64), primary_key=True),
        sa.Column("student", sa.String(64), primary_key=True),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("task_id", sa.String(200), nullable=False),
        sa.Column("edit", sa.String(64), nullable=False),
        sa.Column("repeat", sa.Integer, nullable=False),
        sa.Column("adapter_version", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("outcome", sa.LargeBinary),
        sa.Column("reward", sa.Float),
        sa.Column("parts", sa.Text),
        sa.Column("seconds", sa.Float),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
        sa.Index("evaluations_by_task", "run_id", "student", "task_id"),
    )
    op.create_table(
        "rewards",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("candidate_id", sa.String(400), primary_key=True),
        sa.Column("student", sa.String(64), primary_key=True),
        sa.Column("repeat", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("evaluation_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reward", sa.Float),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "updates",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "commits",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("student", sa.String(64), primary_key=True),
        sa.Column("task_id", sa.String(200), primary_key=True),
        sa.Column("candidate_id", sa.String(400), nullable=False),
        sa.Column("evaluation_id", sa.String(64), nullable=False),
        sa.Column("committed", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("parent_version", sa.Text, nullable=False),
        sa.Column("quiz_before", sa.LargeBinary, nullable=False),
        sa.Column("quiz_after", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "events",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"]),
    )
    op.create_table(
        "students",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("changed_at", sa.BigInteger),
    )
    op.create_table(
        "student_history",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("replaced_at", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop all tables."""
    for name in (
        "student_history",
        "students",
        "events",
        "commits",
        "updates",
        "rewards",
        "evaluations",
        "candidates",
        "tasks",
        "run_students",
        "runs",
    ):
        op.drop_table(name)

"""The tables. Times are UTC microseconds since 1970; payloads are messages of the contract, serialised."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
)

metadata = MetaData()


def _run_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["run_id"], ["runs.run_id"])


runs = Table(
    "runs",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("content_hash", String(64), nullable=False),
    Column("config_yaml", Text, nullable=False),
    Column("retention_quiz", LargeBinary, nullable=False),
    Column("format", LargeBinary, nullable=False),
    Column("teacher", LargeBinary, nullable=False),
    Column("policy_version", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    # The settings with every default filled in as it was then; empty in runs older than this column.
    Column("resolved_yaml", Text, nullable=False, server_default=""),
    # Rounds that were added to those of the settings.
    Column("extra_rounds", Integer, nullable=False, server_default="0"),
    # Which orchestrator drives the run until when, and how often that changed: writes of an earlier epoch are refused.
    Column("owner", String(200), nullable=False, server_default=""),
    Column("leased_until", BigInteger, nullable=False, server_default="0"),
    Column("epoch", BigInteger, nullable=False, server_default="0"),
)

run_students = Table(
    "run_students",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("student", String(64), primary_key=True),
    Column("description", LargeBinary, nullable=False),
    Column("adapter_version", Text, nullable=False),
    _run_key(),
)

tasks = Table(
    "tasks",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("task_id", String(200), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    _run_key(),
)

candidates = Table(
    "candidates",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("task_id", String(200), primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("candidate_id", String(400), nullable=False, unique=True),
    Column("edit", String(64)),
    Column("payload", LargeBinary, nullable=False),
    _run_key(),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("evaluation_id", String(64), primary_key=True),
    # Two logical students of one model give equal keys; each trains and keeps its own weights.
    Column("student", String(64), primary_key=True),
    Column("phase", String(16), nullable=False),
    Column("round", Integer, nullable=False),
    Column("task_id", String(200), nullable=False),
    Column("edit", String(64), nullable=False),
    Column("repeat", Integer, nullable=False),
    Column("adapter_version", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("outcome", LargeBinary),
    Column("reward", Float),
    Column("parts", Text),
    Column("seconds", Float),
    Column("started_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    # Address of the replica that gave the outcome: it holds the weights.
    Column("replica", Text, nullable=False, server_default=""),
    _run_key(),
    Index("evaluations_by_task", "run_id", "student", "task_id"),
)

rewards = Table(
    "rewards",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("candidate_id", String(400), primary_key=True),
    Column("student", String(64), primary_key=True),
    Column("repeat", Integer, primary_key=True, autoincrement=False),
    # Empty for an edit that the parser rejected: no student was asked.
    Column("evaluation_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reward", Float),
    _run_key(),
)

updates = Table(
    "updates",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("version", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    _run_key(),
)

commits = Table(
    "commits",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("student", String(64), primary_key=True),
    Column("task_id", String(200), primary_key=True),
    Column("candidate_id", String(400), nullable=False),
    Column("evaluation_id", String(64), nullable=False),
    Column("committed", Boolean, nullable=False),
    # Whether a fault, and not the gate, kept it from being committed.
    Column("fault", Boolean, nullable=False, server_default=false()),
    Column("reason", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("parent_version", Text, nullable=False),
    Column("quiz_before", LargeBinary, nullable=False),
    Column("quiz_after", LargeBinary, nullable=False),
    # As the stored version answered; NULL in rows older than this column.
    Column("retention_after", LargeBinary),
    _run_key(),
)

utilisation = Table(
    "utilisation",
    metadata,
    Column("run_id", String(64), primary_key=True),
    # `teacher` or `student/NAME`.
    Column("actor", String(80), primary_key=True),
    # Slot-seconds that were used, and that there were while the run was driven.
    Column("busy_s", Float, nullable=False),
    Column("capacity_s", Float, nullable=False),
    _run_key(),
)

events = Table(
    "events",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    _run_key(),
)

inbox_documents = Table(
    "inbox_documents",
    metadata,
    Column("inbox", String(32), primary_key=True),
    Column("task_id", String(200), primary_key=True),
    Column("content_hash", String(64), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("source", Text, nullable=False),
    Column("submitted_at", BigInteger, nullable=False),
    Column("position", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Index("inbox_documents_by_state", "inbox", "state", "submitted_at", "position"),
)

inbox_windows = Table(
    "inbox_windows",
    metadata,
    Column("inbox", String(32), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("spent", Integer, nullable=False),
    Column("batches", Integer, nullable=False),
)

inbox_batches = Table(
    "inbox_batches",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("inbox", String(32), nullable=False),
    Column("window_start", BigInteger, nullable=False),
    Column("reserved", Integer, nullable=False),
    # NULL while it is under way.
    Column("spent", Integer),
    Index("inbox_batches_by_inbox", "inbox", "spent"),
)

students = Table(
    "students",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", Text, nullable=False),
    Column("changed_at", BigInteger),
)

student_history = Table(
    "student_history",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("version", Text, nullable=False),
    Column("replaced_at", BigInteger, nullable=False),
)

judge_verdicts = Table(
    "judge_verdicts",
    metadata,
    # Hash of the endpoint, the model and the prompt.
    Column("asked", String(64), primary_key=True),
    Column("judge", Text, nullable=False),
    Column("verdict", Float, nullable=False),
    Column("at", BigInteger, nullable=False),
)

"""The durable memory of a student: final outcomes, baselines and commits in SQLite, held weights as files beside it.

A report or a rejection is final and written once; a failure is never written. Values are stored as the contract's own
messages, which keep every double exactly.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from student.adapters import tensors_of, weights_of, write_synced
from student.lora import LoraWeights
from tutelage.domain.errors import DataLoss
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, QuizResult
from tutelage.domain.self_edit import Rejection
from tutelage.v1 import evaluation_pb2
from tutelage.wire.evaluation import (
    evaluation_key_from_wire,
    evaluation_key_to_wire,
    evaluation_outcome_from_wire,
    evaluation_outcome_to_wire,
    quiz_result_from_wire,
    quiz_result_to_wire,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS evaluations (id TEXT PRIMARY KEY, key BLOB NOT NULL, outcome BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS baselines (id TEXT PRIMARY KEY, result BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS held (
    id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, held_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS commits (
    evaluation_id TEXT PRIMARY KEY, version TEXT NOT NULL, quiz BLOB NOT NULL, retention BLOB
);
"""

FinalOutcome = EvaluationReport | Rejection


class EvaluationStore:
    """One folder, one process. All methods are safe for several threads and leave the disk whole at any moment."""

    def __init__(self, folder: Path, *, hold_s: float, max_held_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._held = folder / "held"
        self._held.mkdir(exist_ok=True)
        self._hold_s, self._max_held_bytes = hold_s, max_held_bytes
        self._lock = threading.RLock()
        self._db = sqlite3.connect(folder / "evaluations.sqlite", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)
        if "retention" not in {row[1] for row in self._db.execute("PRAGMA table_info(commits)")}:
            # A folder from before the retention quiz was taken again.
            self._db.execute("ALTER TABLE commits ADD COLUMN retention BLOB")
        self.expire()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _one(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._db.execute(sql, values).fetchone()
        return row

    def outcome(self, evaluation_id: str) -> FinalOutcome | None:
        """The final outcome, or None when there is none yet."""
        row = self._one("SELECT outcome FROM evaluations WHERE id = ?", evaluation_id)
        if row is None:
            return None
        outcome = evaluation_outcome_from_wire(evaluation_pb2.EvaluationOutcome.FromString(row[0]))
        assert isinstance(outcome, EvaluationReport | Rejection)
        return outcome

    def key(self, evaluation_id: str) -> EvaluationKey | None:
        """The key of an evaluation that has a final outcome."""
        row = self._one("SELECT key FROM evaluations WHERE id = ?", evaluation_id)
        return None if row is None else evaluation_key_from_wire(evaluation_pb2.EvaluationKey.FromString(row[0]))

    def finish(self, key: EvaluationKey, outcome: FinalOutcome, weights: LoraWeights | None = None) -> FinalOutcome:
        """Stores an outcome with the weights that earned it; the first one stored stays and is returned."""
        held: tuple[str, int] | None = None
        if weights is not None and self._hold_s > 0:
            data = tensors_of(weights)
            part = self._path(key.id).with_suffix(".part")
            write_synced(part, data)
            part.replace(self._path(key.id))
            held = (hashlib.sha256(data).hexdigest(), len(data))
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute(
                    "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?)",
                    (
                        key.id,
                        evaluation_key_to_wire(key).SerializeToString(),
                        evaluation_outcome_to_wire(outcome).SerializeToString(),
                    ),
                )
                if held is not None:
                    self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)", (key.id, *held, time.time()))
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        self.expire()
        stored = self.outcome(key.id)
        assert stored is not None
        return stored

    def held_weights(self, evaluation_id: str) -> LoraWeights | None:
        """The weights that earned the report, or None when they are no longer held. Raises DataLoss if damaged."""
        self.expire()
        row = self._one("SELECT sha256 FROM held WHERE id = ?", evaluation_id)
        if row is None:
            return None
        try:
            data = self._path(evaluation_id).read_bytes()
        except FileNotFoundError:
            raise DataLoss(f"the held weights of evaluation {evaluation_id} are gone") from None
        if hashlib.sha256(data).hexdigest() != row[0]:
            raise DataLoss(f"the held weights of evaluation {evaluation_id} are truncated or damaged")
        return weights_of(data)

    def expire(self) -> None:
        """Drops held weights that are too old or too many, and files that no row knows."""
        with self._lock:
            self._db.execute("DELETE FROM held WHERE held_at < ?", (time.time() - self._hold_s,))
            kept: set[str] = set()
            total = 0
            for name, size in self._db.execute("SELECT id, bytes FROM held ORDER BY held_at DESC").fetchall():
                total += size
                if total > self._max_held_bytes and kept:
                    self._db.execute("DELETE FROM held WHERE id = ?", (name,))
                else:
                    kept.add(name)
            for path in self._held.iterdir():
                # A file being written, or written a moment before its row.
                if path.stem not in kept and time.time() - path.stat().st_mtime > 60:
                    path.unlink(missing_ok=True)

    def _path(self, evaluation_id: str) -> Path:
        return self._held / f"{evaluation_id}.safetensors"

    def baseline(self, baseline_id: str) -> QuizResult | None:
        """The answers before, by what decides them."""
        row = self._one("SELECT result FROM baselines WHERE id = ?", baseline_id)
        return None if row is None else quiz_result_from_wire(evaluation_pb2.QuizResult.FromString(row[0]))

    def keep_baseline(self, baseline_id: str, result: QuizResult) -> None:
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO baselines VALUES (?, ?)",
                (baseline_id, quiz_result_to_wire(result).SerializeToString()),
            )

    def committed(self, evaluation_id: str) -> tuple[str, QuizResult, QuizResult] | None:
        """Version, quiz and retention quiz of an earlier commit."""
        query = "SELECT version, quiz, retention FROM commits WHERE evaluation_id = ? AND retention IS NOT NULL"
        row = self._one(query, evaluation_id)
        if row is None:
            return None
        quiz, retention = (quiz_result_from_wire(evaluation_pb2.QuizResult.FromString(each)) for each in row[1:])
        return str(row[0]), quiz, retention

    def keep_commit(self, evaluation_id: str, version: str, quiz: QuizResult, retention: QuizResult) -> None:
        results = [quiz_result_to_wire(each).SerializeToString() for each in (quiz, retention)]
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO commits (evaluation_id, version, quiz, retention) VALUES (?, ?, ?, ?)",
                (evaluation_id, version, *results),
            )

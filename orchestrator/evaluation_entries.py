"""What happens to evaluations, as entries that become rows and events: begun, tried again, ended once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator import schema as s
from orchestrator.database import now_us
from orchestrator.rows import Event, insert_or_ignore
from orchestrator.run_events import Evaluate
from tutelage.domain.evaluation import EvaluationOutcome, Failure
from tutelage.domain.reward import Reward
from tutelage.domain.self_edit import Rejection
from tutelage.wire import evaluation as wire_evaluation


@dataclass(frozen=True)
class Begun:
    """An evaluation was given to a student."""

    evaluation_id: str
    work: Evaluate
    phase: str
    adapter_version: str
    at_us: int


@dataclass(frozen=True)
class TriedAgain:
    """An attempt failed and will be made again."""

    evaluation_id: str
    student: str
    detail: Mapping[str, object]


@dataclass(frozen=True)
class Ended:
    """An evaluation's outcome, and the candidates that earn its reward."""

    begun: Begun
    outcome: EvaluationOutcome
    reward: Reward | None
    seconds: float
    attempts: int
    candidate_ids: Sequence[str]
    replica: str
    unscored: str = ""
    """Why a report has no reward: what the student answered is kept all the same."""


Entry = Begun | TriedAgain | Ended

UPDATED = ("state", "reason", "outcome", "reward", "parts", "seconds", "attempts", "ended_at", "replica")
"""Columns that an end changes."""


class Batch:
    """Entries turned into rows, each kind of which is written by one statement."""

    def __init__(self, run_id: str, known: dict[tuple[str, str], str]) -> None:
        self.run_id = run_id
        self._states = known
        self._made: dict[tuple[str, str], dict[str, Any]] = {}
        self._changed: list[dict[str, Any]] = []
        self._again: dict[tuple[str, str], int] = {}
        self._rewards: list[dict[str, Any]] = []
        self.events: list[Event] = []

    def take(self, entry: Entry) -> bool:
        """Whether the entry changes something."""
        match entry:
            case Begun():
                return self._begin(entry)
            case TriedAgain():
                return self._count_attempt(entry)
            case Ended():
                return self._end(entry)

    def _begin(self, entry: Begun) -> bool:
        key, work = key_of(entry), entry.work
        if key in self._states:
            return False
        self._states[key] = "pending"
        self._made[key] = {
            "run_id": self.run_id,
            "evaluation_id": entry.evaluation_id,
            "student": work.student,
            "phase": entry.phase,
            "round": work.round,
            "task_id": work.task,
            "edit": work.edit,
            "repeat": work.repeat,
            "adapter_version": entry.adapter_version,
            "started_at": entry.at_us,
            **dict.fromkeys(UPDATED),
            "state": "pending",
            "attempts": 0,
            "reason": "",
            "replica": "",
        }
        detail = {
            "evaluation": entry.evaluation_id,
            "round": work.round,
            "task": work.task,
            "student": work.student,
            "repeat": work.repeat,
            "phase": entry.phase,
        }
        self.events.append(("evaluation_started", detail))
        return True

    def _count_attempt(self, entry: TriedAgain) -> bool:
        key = key_of(entry)
        if self._states.get(key) != "pending":
            return False
        if key in self._made:
            self._made[key]["attempts"] += 1
        else:
            self._again[key] = self._again.get(key, 0) + 1
        self.events.append(("evaluation_retry", entry.detail))
        return True

    def _end(self, entry: Ended) -> bool:
        key, work = key_of(entry), entry.begun.work
        self._begin(entry.begun)
        if self._states[key] != "pending":
            return False
        state, reason = state_of(entry)
        self._states[key] = state
        value = None if entry.reward is None else entry.reward.value
        changes = {
            "state": state,
            "reason": reason,
            "outcome": wire_evaluation.evaluation_outcome_to_wire(entry.outcome).SerializeToString(),
            "reward": value,
            "parts": json.dumps(entry.reward.parts if entry.reward else {}, allow_nan=False),
            "seconds": entry.seconds,
            "attempts": entry.attempts,
            "ended_at": now_us(),
            "replica": entry.replica,
        }
        if key in self._made:
            self._made[key].update(changes)
        else:
            self._again.pop(key, None)
            self._changed.append({"key_evaluation": key[0], "key_student": key[1], **changes})
        self._rewards += [
            {
                "run_id": self.run_id,
                "candidate_id": candidate_id,
                "student": work.student,
                "repeat": work.repeat,
                "evaluation_id": key[0],
                "state": state,
                "reward": value,
            }
            for candidate_id in entry.candidate_ids
        ]
        detail = {
            "evaluation": key[0],
            "student": work.student,
            "round": work.round,
            "task": work.task,
            "repeat": work.repeat,
            "phase": entry.begun.phase,
            "candidates": list(entry.candidate_ids),
            "outcome": state,
            "reason": reason,
            "reward": value,
            "attempts": entry.attempts,
            "seconds": round(entry.seconds, 3),
        }
        self.events.append(("evaluation_done", detail))
        return True

    async def store(self, connection: AsyncConnection) -> None:
        """Writes the rows; the events are for whoever has the run's lock to append."""
        c = s.evaluations.c
        where = (c.run_id == self.run_id, c.evaluation_id == bindparam("key_evaluation"))
        where_ = (*where, c.student == bindparam("key_student"), c.state == "pending")
        if self._made:
            await connection.execute(insert(s.evaluations), list(self._made.values()))
        if self._changed:
            columns: dict[str, Any] = {name: bindparam(name) for name in UPDATED}
            await connection.execute(update(s.evaluations).where(*where_).values(columns), self._changed)
        if self._again:
            rows = [
                {"key_evaluation": key[0], "key_student": key[1], "more": count} for key, count in self._again.items()
            ]
            counted = {"attempts": c.attempts + bindparam("more")}
            await connection.execute(update(s.evaluations).where(*where_).values(counted), rows)
        if self._rewards:
            await connection.execute(insert_or_ignore(connection, s.rewards), self._rewards)


def key_of(entry: Entry) -> tuple[str, str]:
    """(evaluation, student) of an entry's row."""
    match entry:
        case Begun():
            return entry.evaluation_id, entry.work.student
        case TriedAgain():
            return entry.evaluation_id, entry.student
        case Ended():
            return key_of(entry.begun)


def state_of(ended: Ended) -> tuple[str, str]:
    """The state a row is in after an end, and why."""
    match ended.outcome:
        case Rejection() as outcome:
            at = f" {outcome.field}={outcome.value} (allowed: {outcome.allowed})" if outcome.field else ""
            return "rejected", f"{outcome.reason.value}{at} {outcome.message}".strip()
        case Failure() as outcome:
            return "failed", outcome.message
    return ("failed", ended.unscored) if ended.unscored else ("report", "")

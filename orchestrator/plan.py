"""What a run was asked for: tasks, students, candidates and rounds; fixed while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Across(StrEnum):
    """How the rewards of several students become one."""

    MEAN = "mean"
    WORST = "worst"
    PER_STUDENT = "per_student"
    """Each student has candidates of its own, written for it, and their rewards stay apart."""


@dataclass(frozen=True)
class Plan:
    """What was asked for; fixed while the run goes on."""

    tasks: tuple[str, ...]
    students: tuple[str, ...]
    candidates: int
    """Of a group."""
    repeats: int
    rounds: int
    commits: bool
    rejected_reward: float | None = None
    staleness: int = 0
    across: Across = Across.MEAN

    @property
    def evaluations(self) -> int:
        """Rewards the whole run can give: one a (candidate, student it was written for, repeat)."""
        return self.rounds * len(self.tasks) * self.candidates * len(self.students) * self.repeats

    @property
    def audiences(self) -> tuple[str, ...]:
        """For whom groups are written: each student for itself, or all together (the empty name)."""
        return self.students if self.across is Across.PER_STUDENT else ("",)

    def update_name(self, round: int, task: str, index: int) -> str:
        """What a candidate is called in an update, from its index within its document and round.

        Named without the run: the same candidates with the same rewards make the same policy in any run.
        """
        group = Group(round, task, self.audiences[index // self.candidates])
        return f"{group.update_name}/{index % self.candidates}"

    def readers(self, audience: str) -> tuple[str, ...]:
        """The students that evaluate a group."""
        return (audience,) if audience else self.students


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates that compete: those of a task in a round, written for one audience."""

    round: int
    task: str
    audience: str = ""

    @property
    def update_name(self) -> str:
        """What it is called in an update."""
        return "/".join(str(part) for part in (self.round, self.task, self.audience) if part != "")

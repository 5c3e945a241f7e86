"""Counts and means over a run's rewards, kept up to date as they are given. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.records import StudentTally, Tally


class RunningTally:
    """What `EvaluationRows.tally` reads from the rows, without reading them again."""

    def __init__(self, given: Iterable[tuple[str, str, str, float | None]], seconds: Iterable[float]) -> None:
        """From (candidate, student, state, reward) of every reward, and the seconds of every evaluation."""
        self._done: dict[str, int] = {}
        self._sums: dict[str, tuple[int, float]] = {}
        self._rejected: set[str] = set()
        self._scored: set[tuple[str, str]] = set()
        self._failed: set[tuple[str, str]] = set()
        self._seconds = 0.0
        self._timed = 0
        for candidate_id, student, state, reward in given:
            self._count((candidate_id,), student, state, reward)
        for each in seconds:
            self._time(each)

    def rejected(self, candidate_id: str, students: Sequence[str], repeats: int, reward: float | None) -> None:
        """A candidate that the parser rejected: its rewards are given without an evaluation."""
        for student in students:
            for _ in range(repeats):
                self._count((candidate_id,), student, "rejected", reward)

    def ended(
        self, candidate_ids: Sequence[str], student: str, state: str, reward: float | None, seconds: float | None
    ) -> None:
        """An evaluation ended; each of its candidates earned the reward."""
        self._count(candidate_ids, student, state, reward)
        if state != "failed" and seconds is not None:
            self._time(seconds)

    def _count(self, candidate_ids: Sequence[str], student: str, state: str, reward: float | None) -> None:
        self._done[student] = self._done.get(student, 0) + len(candidate_ids)
        if state == "rejected":
            self._rejected.update(candidate_ids)
        elif state == "failed":
            self._failed.update((candidate_id, student) for candidate_id in candidate_ids)
        if reward is not None:
            self._scored.update((candidate_id, student) for candidate_id in candidate_ids)
            number, total = self._sums.get(student, (0, 0.0))
            self._sums[student] = number + len(candidate_ids), total + reward * len(candidate_ids)

    def _time(self, seconds: float) -> None:
        self._seconds += seconds
        self._timed += 1

    def snapshot(self) -> Tally:
        """The counts and means now."""
        number = sum(each[0] for each in self._sums.values())
        total = sum(each[1] for each in self._sums.values())
        return Tally(
            done=sum(self._done.values()),
            rejected=len(self._rejected),
            unscored=len({candidate_id for candidate_id, _ in self._failed - self._scored}),
            mean_reward=total / number if number else None,
            students={
                student: StudentTally(done, self._sums[student][1] / self._sums[student][0])
                if student in self._sums
                else StudentTally(done, None)
                for student, done in self._done.items()
            },
            mean_seconds=self._seconds / self._timed if self._timed else None,
        )

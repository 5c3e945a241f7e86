"""Which evaluation goes to which replica of its student, and what becomes of it when that fails. Pure.

Events go in with the time they happened at, decisions come out; there is no clock and no socket here. A job is an
evaluation: safe to repeat, on any replica of its student, because it is asked for by its id and the first outcome
counts.

- The oldest job first; among owners (runs) the one with the least under way at that student.
- To the replica with the smallest share of its slots taken; after a failure another one is preferred.
- A failed attempt is tried again after a growing pause, up to the job's attempts and its total deadline. A replica that
  refuses a job (it is another model, it lacks the adapter version) is not asked for it again.
- One that says when it has room again, because others fill it, costs no attempt: only the total deadline ends the wait.
- A replica that fails repeatedly is set aside and probed; while a student has none left its jobs wait, which costs no
  attempts, until the total deadline.

Every job ends exactly once: by `ended` with a final outcome, by GiveUp, or by `withdraw`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from orchestrator.alarms import Alarms
from orchestrator.backoff import RetryBudget, backoff_s
from orchestrator.dispatch_decisions import Again, Decision, Fault, GiveUp, Job, Limits, Probe, Rules, Start, Stop
from orchestrator.dispatch_state import KnownStudent, Waiting
from orchestrator.replica import Replica, Standing


class Dispatch:
    """All students of an orchestrator and the jobs of all its runs."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.students: dict[str, KnownStudent] = {}
        self._jobs: dict[Job, Waiting] = {}
        self._attempts: dict[int, tuple[Job, Replica, str]] = {}
        self._alarms = Alarms(lambda kind, about: kind in ("probe", "fill") or about in self._jobs)
        self._at = self._alarms.add
        self._numbers = itertools.count(1)

    # Replicas.

    def listed(self, student: str, addresses: Iterable[str], now: float) -> list[Decision]:
        """The student's replicas are these, from now on."""
        known = self.students.setdefault(student, KnownStudent(RetryBudget(self.rules.budget), now))
        listed = dict.fromkeys(addresses)
        out: list[Decision] = []
        was = known.trusted
        for address, replica in list(known.replicas.items()):
            if address not in listed:
                replica.standing = Standing.LEAVING
                if not replica.running:
                    del known.replicas[address]
        for address in listed:
            replica = known.replicas.setdefault(address, Replica(student, address))
            if replica.standing is Standing.LEAVING:
                replica.standing = Standing.NEW
            if replica.standing is Standing.NEW and not replica.probing:
                out += self._probe(replica)
        if was and not known.trusted:
            self._lost(student, now)
        return out + self._refusals(student, now)

    def reported(self, student: str, address: str, slots: int, free: int, now: float) -> list[Decision]:
        """A replica said how many slots it has and how many are free."""
        replica = self._replica(student, address)
        if replica is None or replica.standing is Standing.LEAVING:
            return []
        replica.reported(slots, free)
        # A replica that others use too may have room again any moment.
        self._probe_at(replica, now + (self.rules.report_s if not replica.others else min(5.0, self.rules.report_s)))
        return self._fill(student, now)

    def unreachable(self, student: str, address: str, now: float) -> list[Decision]:
        """A replica did not answer a probe."""
        replica = self._replica(student, address)
        if replica is None:
            return []
        replica.probing = False
        if replica.standing is Standing.LEAVING:
            return []
        if replica.trusted and not replica.failed(self.rules.set_aside_after):
            # It may only be too busy to answer at once.
            self._probe_at(replica, now + self.rules.initial_s)
        else:
            self._aside(replica, now)
        return []

    def wanted(self, student: str) -> list[Decision]:
        """Somebody begins to work with the student: those of its replicas that were away are asked at once."""
        known = self.students.get(student)
        away = (Standing.NEW, Standing.ASIDE)
        found = [each for each in known.replicas.values() if each.standing in away] if known else []
        return [probe for replica in found if not replica.probing for probe in self._probe(replica)]

    # Jobs.

    def submit(
        self,
        job: Job,
        student: str,
        limits: Limits,
        now: float,
        *,
        owner: str = "",
        rank: tuple[int, ...] = (),
        attempts: int = 0,
        age_s: float | None = None,
    ) -> list[Decision]:
        """A new job; `attempts` were made before a restart, and it first started `age_s` ago, if it has.

        Jobs of lower rank go first within their owner.
        """
        if job in self._jobs:
            raise ValueError(f"job {job!r} was submitted before")
        known = self.students.setdefault(student, KnownStudent(RetryBudget(self.rules.budget), now))
        waiting = Waiting(student, owner, rank, limits, attempts)
        if age_s is not None:
            # One attempt has its time also after a restart, for which nobody may have been there for long.
            deadline = now + max(limits.total_s - age_s, min(limits.attempt_s, limits.total_s))
            waiting.first_start = deadline - limits.total_s
            self._at(deadline, "deadline", job)
        self._jobs[job] = waiting
        known.jobs[job] = None
        self._queue(job, waiting)
        if not known.trusted:
            self._at(max(now, known.lost_at + limits.total_s), "lost", job)
        return self._fill(student, now)

    def withdraw(self, job: Job, now: float) -> list[Decision]:
        """Nobody wants the job any more; unknown ones are ignored."""
        if job not in self._jobs:
            return []
        waiting = self._forget(job)
        return self._stop(waiting) + self._fill(waiting.student, now)

    def ended(self, attempt: int, now: float) -> list[Decision]:
        """An attempt gave its job's final outcome; one of a withdrawn job is ignored."""
        if attempt not in self._attempts:
            return []
        job, replica = self._free(attempt)
        replica.succeeded()
        waiting = self._forget(job)
        self.students[waiting.student].budget.succeeded()
        return self._fill(waiting.student, now)

    def failed(
        self, attempt: int, fault: Fault, reason: str, now: float, wait_s: float | None = None
    ) -> list[Decision]:
        """An attempt failed; `wait_s` is what the replica asked to wait."""
        if attempt not in self._attempts:
            return []
        job, replica = self._free(attempt)
        waiting = self._jobs[job]
        waiting.running, waiting.reason = None, reason
        student = self.students[waiting.student]
        if fault is Fault.REFUSED:
            waiting.refused[replica.address] = reason
            self._queue(job, waiting)
            return self._refusals(waiting.student, now) + self._fill(waiting.student, now)
        waiting.last_address = replica.address
        rules = self.rules
        if fault is Fault.FULL:
            replica.full_until = now + max(rules.initial_s, wait_s or 0.0)
            self._at(replica.full_until, "fill", waiting.student)
            if wait_s is not None:
                self._queue(job, waiting)
                return self._fill(waiting.student, now)
        elif replica.failed(rules.set_aside_after):
            self._aside(replica, now)
        waiting.attempts += 1
        student.budget.failed()
        if waiting.attempts >= waiting.limits.attempts:
            given_up = self._give_up(job, f"given up after {waiting.attempts} attempts: {reason}")
            return [given_up, *self._fill(waiting.student, now)]
        pause = backoff_s(waiting.attempts, rules.initial_s, rules.factor, rules.maximum_s)
        if not student.budget.left:
            pause = rules.maximum_s
        elif wait_s is not None:
            pause = min(rules.maximum_s, max(pause, wait_s))
        self._at(now + pause, "again", job)
        return [Again(job, waiting.attempts, pause, reason), *self._fill(waiting.student, now)]

    # Time.

    def wake_at(self) -> float | None:
        """When `tick` is next needed."""
        return self._alarms.next_at()

    def tick(self, now: float) -> list[Decision]:
        """Time has passed."""
        out: list[Decision] = []
        due: dict[str, None] = {}
        for kind, about in self._alarms.due(now):
            if kind == "probe":
                assert isinstance(about, tuple)
                replica = self._replica(*about)
                if replica is not None and replica.to_be_asked(now):
                    out += self._probe(replica)
            elif kind == "fill":
                due[str(about)] = None
            elif about in self._jobs:
                waiting = self._jobs[about]
                if kind == "again" and waiting.running is None:
                    self._queue(about, waiting)
                    due[waiting.student] = None
                elif kind == "deadline" or (kind == "lost" and self._is_lost(waiting, now)):
                    out += self._expired(about, waiting, now)
                    due[waiting.student] = None
        for student in due:
            out += self._fill(student, now)
        return out

    # What callers may look at.

    def slots(self, student: str) -> int:
        """Slots of the student's replicas that may get work."""
        known = self.students.get(student)
        return sum(replica.slots for replica in known.replicas.values() if replica.trusted) if known else 0

    def free(self, student: str, now: float) -> int:
        """Free slots over the student's replicas."""
        known = self.students.get(student)
        return sum(replica.free(now) for replica in known.replicas.values()) if known else 0

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    # Within.

    def _replica(self, student: str, address: str) -> Replica | None:
        known = self.students.get(student)
        return known.replicas.get(address) if known else None

    def _probe_at(self, replica: Replica, when: float) -> None:
        replica.probe_at = when
        self._at(when, "probe", (replica.student, replica.address))

    def _probe(self, replica: Replica) -> list[Decision]:
        replica.asked()
        return [Probe(replica.student, replica.address)]

    def _aside(self, replica: Replica, now: float) -> None:
        was = self.students[replica.student].trusted
        replica.set_aside()
        pause = backoff_s(replica.setbacks, self.rules.initial_s, self.rules.factor, self.rules.maximum_s)
        self._probe_at(replica, now + pause)
        if was and not self.students[replica.student].trusted:
            self._lost(replica.student, now)

    def _lost(self, student: str, now: float) -> None:
        self.students[student].lost_at = now
        for job in self.students[student].jobs:
            waiting = self._jobs[job]
            if waiting.first_start is None:
                self._at(now + waiting.limits.total_s, "lost", job)

    def _is_lost(self, waiting: Waiting, now: float) -> bool:
        student = self.students[waiting.student]
        # Those that come later do not wait anew: a student that is gone must not hold a run up again and again.
        away_s = now - student.lost_at
        return waiting.first_start is None and not student.trusted and away_s >= waiting.limits.total_s * 0.999

    def _forget(self, job: Job) -> Waiting:
        waiting = self._jobs.pop(job)
        del self.students[waiting.student].jobs[job]
        return waiting

    def _queue(self, job: Job, waiting: Waiting) -> None:
        self.students[waiting.student].queue.add(job, waiting.owner, waiting.rank)

    def _free(self, attempt: int) -> tuple[Job, Replica]:
        job, replica, owner = self._attempts.pop(attempt)
        replica.ended()
        student = self.students[replica.student]
        if replica.standing is Standing.LEAVING and not replica.running:
            student.replicas.pop(replica.address, None)
        student.queue.ended(owner)
        return job, replica

    def _stop(self, waiting: Waiting) -> list[Decision]:
        if waiting.running is None:
            return []
        self._free(waiting.running)
        return [Stop(waiting.running)]

    def _give_up(self, job: Job, reason: str) -> GiveUp:
        waiting = self._forget(job)
        return GiveUp(job, waiting.attempts, reason)

    def _expired(self, job: Job, waiting: Waiting, now: float) -> list[Decision]:
        out = self._stop(waiting)
        last = f": {waiting.reason}" if waiting.reason else ""
        if waiting.first_start is None:
            reason = f"student {waiting.student!r} did not answer for {waiting.limits.total_s:g} s{last}"
        else:
            reason = f"not done in {waiting.limits.total_s:g} s, {waiting.attempts} attempts failed{last}"
        return [*out, self._give_up(job, reason)]

    def _refusals(self, student: str, now: float) -> list[Decision]:
        """Gives up what every listed replica has refused."""
        replicas = self.students[student].replicas.values()
        listed = [each.address for each in replicas if each.standing is not Standing.LEAVING]
        out: list[Decision] = []
        for job in list(self.students[student].jobs):
            waiting = self._jobs[job]
            if not waiting.refused or waiting.running is not None or not listed:
                continue
            if all(address in waiting.refused for address in listed):
                reasons = "; ".join(dict.fromkeys(waiting.refused.values()))
                out.append(self._give_up(job, reasons))
        return out

    def _fill(self, name: str, now: float) -> list[Decision]:
        """Starts what has room."""
        student = self.students[name]
        out: list[Decision] = []
        passed_over: list[tuple[Job, Waiting]] = []
        while student.queue:
            room = [replica for replica in student.replicas.values() if replica.free(now) > 0]
            if not room:
                break
            job = student.queue.take()
            waiting = self._jobs.get(job)
            if waiting is None or waiting.running is not None:
                continue
            open_to = [replica for replica in room if replica.address not in waiting.refused]
            if not open_to:
                passed_over.append((job, waiting))
                continue
            out.append(self._start(job, waiting, open_to, now))
        for job, waiting in passed_over:
            self._queue(job, waiting)
        return out

    def _start(self, job: Job, waiting: Waiting, open_to: list[Replica], now: float) -> Start:
        last = waiting.last_address
        replica = min(open_to, key=lambda each: (each.address == last, each.load, each.failures, each.address))
        if waiting.first_start is None:
            waiting.first_start = now
            self._at(now + waiting.limits.total_s, "deadline", job)
        left = waiting.first_start + waiting.limits.total_s - now
        attempt = waiting.running = next(self._numbers)
        replica.started()
        self._attempts[attempt] = (job, replica, waiting.owner)
        self.students[waiting.student].queue.started(waiting.owner)
        return Start(job, replica.address, attempt, max(0.001, min(waiting.limits.attempt_s, left)))

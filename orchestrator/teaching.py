"""What a run asks of its teacher: the candidates of a task, and a new policy from a round's rewards."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from orchestrator import metrics
from orchestrator.closing import viable
from orchestrator.config import OrchestratorSettings
from orchestrator.group_rewards import group_rewards, measured
from orchestrator.machine import Machine
from orchestrator.plan import Group
from orchestrator.prompt_places import MISTAKES, STUDENT
from orchestrator.records import Run, StoredCandidate, StoredUpdate
from orchestrator.retrying import TEACHER_FAULTS, patiently
from orchestrator.rows import Event
from orchestrator.run_events import UpdatePolicy
from orchestrator.store import Store
from orchestrator.store_fault import StoreFault
from orchestrator.student_profile import (
    MOST_MISTAKES,
    Mistake,
    about_the_same,
    described,
    mistakes_in,
    not_asked_by,
    told,
)
from tutelage.client import TeacherClient
from tutelage.domain.canonical import derived_seed
from tutelage.domain.description import StudentDescription, TeacherDescription, UpdateProgress
from tutelage.domain.errors import TutelageError, Unavailable
from tutelage.domain.policy import (
    Candidate,
    CandidateGroup,
    Format,
    Policy,
    ScoredCandidate,
    UpdateRequest,
    UpdateResult,
)
from tutelage.domain.run import NO_UPDATE

T = TypeVar("T")
PROGRESS_S = 10.0
"""Seconds between two events that tell how far an update is."""
WATCHED = ("loss", "kl", "entropy", "grad_norm")
"""What watchers are told of what the trainer logged, where it did; reports have all of it."""


async def first_policy(wanted: str, described: TeacherDescription, teacher: TeacherClient) -> str:
    """What `initial`, `latest`, `promoted` or a version means to this teacher; empty when it does not keep it."""
    named = {
        "initial": described.initial_policy_version,
        "latest": described.latest_policy_version,
        "promoted": described.promoted_policy_version,
    }
    if wanted in named:
        return named[wanted]
    known = {described.initial_policy_version} | {policy.version for policy in await teacher.list_policies()}
    return wanted if wanted in known else ""


def first_index(run: Run, group: Group) -> int:
    """The index of a group's first candidate within its task and round."""
    return run.config.students.index(group.audience) * run.config.candidates if group.audience else 0


def addressed(format: Format, readers: Mapping[str, StudentDescription], alone: bool) -> Format:
    """The format for these readers; its prompt says who they are in the place of `{student}`, or at its end.

    It says so at its end only of one that is written for `alone`.
    """
    prompt = format.prompt
    if STUDENT not in prompt:
        if not alone:
            return format
        prompt = f"{prompt}\n\nWrite for this student: {STUDENT}"
    who = " and ".join(described(name, student) for name, student in readers.items())
    return replace(format, prompt=prompt.replace(STUDENT, who))


def informed(format: Format, mistakes: Sequence[Mistake]) -> Format:
    """The format with what its readers got wrong in the place of `{mistakes}`."""
    return replace(format, prompt=format.prompt.replace(MISTAKES, told(mistakes)))


@dataclass(frozen=True)
class Teaching:
    run: Run
    store: Store
    teacher: TeacherClient
    settings: OrchestratorSettings
    paused: asyncio.Event
    """Set once nothing is to be begun or tried again."""

    async def _told(self, error: TutelageError, attempt: int, wait_s: float) -> None:
        detail = {"attempt": attempt, "wait_s": wait_s, "reason": str(error)}
        await self.store.append(self.run.run_id, ("teacher_retry", detail))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        retry = self.settings.retry
        return await patiently(call, "teacher", retry, faults=TEACHER_FAULTS, paused=self.paused, told=self._told)

    async def _format(self, group: Group) -> Format:
        """What the group is written in: the run's format, with what its prompt asks of the students."""
        names = (group.audience,) if group.audience else self.run.config.students
        readers = {name: self.run.students[name].description for name in names}
        written = addressed(self.run.format, readers, alone=bool(group.audience))
        return informed(written, await self._mistakes(group)) if MISTAKES in written.prompt else written

    async def _mistakes(self, group: Group) -> list[Mistake]:
        """A few mistakes of the group's students about other tasks, those that follow the group's own first."""
        ids = list(self.run.tasks)
        place = ids.index(group.task)
        # Rounds that may still be written while this one is evaluated are not told of: a restart would find more.
        complete = group.round - self.run.config.staleness
        found: list[Mistake] = []
        own = self.run.tasks[group.task]
        for task_id in (*ids[place + 1 :], *ids[:place]):
            if about_the_same(own.task, self.run.tasks[task_id].task):
                continue
            for student in (group.audience,) if group.audience else self.run.config.students:
                stored = await self.store.evaluations(self.run.run_id, student=student, task_id=task_id)
                wrong = mistakes_in(stored, self.run.tasks[task_id].quiz, complete)
                found += not_asked_by(own.quiz, wrong)[:1]
                if len(found) >= MOST_MISTAKES:
                    return found
        return found

    async def write(self, group: Group, policy_version: str) -> list[StoredCandidate]:
        """The stored candidates of a group. A teacher that is away is waited for."""
        config, task = self.run.config, self.run.tasks[group.task].task
        audience = [group.audience] if group.audience else []
        format = await self._format(group)

        async def call() -> list[Candidate]:
            stream = self.teacher.write_self_edits(
                task,
                format=format,
                candidates=config.candidates,
                sampling=config.sampling_settings(),
                policy_version=policy_version,
                seed=derived_seed(config.seed, "write", task.id, group.round, *audience),
                run_id=self.run.run_id,
                timeout_s=self.settings.write_timeout_s,
            )
            return sorted([candidate async for candidate in stream], key=lambda candidate: candidate.index)

        written = await self._patiently(call)
        if [candidate.index for candidate in written] != list(range(config.candidates)):
            raise TutelageError(
                f"the teacher wrote candidates {[c.index for c in written]} for task {task.id!r}, "
                f"not 0 to {config.candidates - 1}"
            )
        for candidate in written:
            if candidate.policy_version != policy_version:
                raise TutelageError(
                    f"the teacher wrote with policy {candidate.policy_version!r}, not {policy_version!r}"
                )
        first = first_index(self.run, group)
        written = [replace(candidate, index=first + candidate.index) for candidate in written]
        await self.store.add_group(self.run, group, written)
        stored = await self.store.candidates(self.run.run_id, round_=group.round, task_id=group.task)
        return [item for item in stored if first <= item.candidate.index < first + config.candidates]

    async def _tell_progress(self, round_: int, progress: UpdateProgress) -> None:
        loss = progress.loss if math.isfinite(progress.loss) else None
        detail = {"round": round_, "step": progress.steps_done, "steps": progress.steps_total, "loss": loss}
        # For watchers only: what cannot be told now is no reason to ask the teacher again.
        with contextlib.suppress(StoreFault):
            await self.store.append(self.run.run_id, ("update_progress", detail))

    async def update(self, decision: UpdatePolicy, machine: Machine) -> StoredUpdate:
        """The stored update of a round."""
        run, round_ = self.run, decision.round
        stored = {
            (item.task_id, item.candidate.index): item
            for item in await self.store.candidates(run.run_id, round_=round_)
        }
        groups, rewards, dropped = [], [], []
        policy = run.config.group_policy()
        asked = machine.round_groups(round_)
        learnt = group_rewards(machine, asked, measured(machine, asked), run.config.reward_settings())
        for group in asked:
            each = learnt[group]
            if not viable(policy, machine, group):
                dropped.append(group)
                each = (None,) * len(each)
            rewards += [reward for reward in each if reward is not None]
            first = first_index(run, group)
            scored = tuple(
                ScoredCandidate(
                    run.plan.update_name(round_, group.task, first + index),
                    stored[group.task, first + index].candidate.rollout,
                    reward,
                )
                for index, reward in enumerate(each)
            )
            groups.append(CandidateGroup(group.update_name, scored))
        mean = sum(rewards) / len(rewards) if rewards else None
        if mean is not None:
            metrics.MEAN_REWARD.set(mean)
        request = UpdateRequest(
            parent_version=decision.parent_version,
            algorithm=run.config.update.algorithm,
            settings=run.config.update_settings(),
            groups=tuple(groups),
            seed=derived_seed(run.config.seed, "update", round_),
            run_id=run.run_id,
            round=round_,
        )

        async def call() -> UpdateResult:
            told_at = -math.inf
            async for event in self.teacher.update_policy(request, timeout_s=self.settings.update_timeout_s):
                if isinstance(event, UpdateResult):
                    return event
                if event.steps_done and time.monotonic() - told_at >= PROGRESS_S:
                    told_at = time.monotonic()
                    await self._tell_progress(round_, event)
            raise Unavailable("the teacher ended the stream without a result")

        if run.config.update.when == "never":
            result = _unchanged(decision.parent_version, run.run_id, round_)
        else:
            result = await self._patiently(call)
        told: list[Event] = [
            (
                "policy_updated",
                {
                    "round": round_,
                    "version": result.policy.version,
                    "parent_version": decision.parent_version,
                    "updated": result.updated,
                    "kept": result.kept_candidates,
                    "unscored": result.unscored_candidates,
                    "stale": result.stale_candidates,
                    "mean_reward": mean,
                    "seconds": result.train_seconds,
                    "message": result.message,
                }
                | {name: result.metrics[name] for name in WATCHED if name in result.metrics},
            )
        ]
        told += [
            ("group_dropped", {"round": group.round, "task": group.task, "student": group.audience})
            for group in dropped
        ]
        if round_ < run.plan.rounds:
            told.append(("round_started", {"round": round_ + 1, "policy_version": result.policy.version}))
        elif run.plan.commits:
            told.append(("commit_started", {"students": list(run.config.students)}))
        made = await self.store.add_update(run.run_id, round_, result, told)
        if run.config.update.when != "never":
            metrics.POLICY_ROUND.set(made.result.policy.round)
        return made


def _unchanged(version: str, run_id: str, round_: int) -> UpdateResult:
    """The end of a round after which the teacher was not to learn."""
    policy = Policy(version, version, run_id, round_, NO_UPDATE, "", "", datetime.now(UTC))
    return UpdateResult(policy, "", False, 0, 0.0, "the run does not update the teacher")

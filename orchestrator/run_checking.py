"""Whether a run can be what its settings say: all that is wrong is found before any work is begun."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.config import OrchestratorSettings
from orchestrator.partial_config import read_config
from orchestrator.records import Run, RunStudent
from orchestrator.run_config import RunConfig
from orchestrator.run_violations import resolve_format, service_violations, task_violations
from orchestrator.start_check import Asked, start_violations, without_known
from orchestrator.student_rows import StudentRows
from orchestrator.students import Students
from orchestrator.teaching import first_policy
from tutelage.client import TeacherClient
from tutelage.domain.description import StudentDescription, TeacherDescription
from tutelage.domain.errors import FieldViolation, InvalidInput, Unavailable
from tutelage.domain.run import RunState, TaskWithQuiz
from tutelage.domain.task import Quiz
from tutelage.rpc.channel import RECONNECT_S

RUN_ID = re.compile(r"[a-z0-9_-]{1,64}")
MEET_S = 1.5 * RECONNECT_S
"""Seconds in which services that do not answer are asked again: one that has just come up still counts as away."""


@dataclass(frozen=True)
class RunChecking:
    settings: OrchestratorSettings
    teacher: TeacherClient
    students: Students
    rows: StudentRows

    async def checked(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Sequence[TaskWithQuiz],
        retention_quiz: Quiz,
        digest: str,
        malformed: Sequence[FieldViolation],
    ) -> Run:
        """The run as it will be stored; `malformed` is what was found wrong in tasks that were left out of `tasks`.

        InvalidInput names all that is wrong, Unavailable who does not answer.
        """
        wrong = [*malformed] or task_violations(tasks, retention_quiz)
        if not RUN_ID.fullmatch(run_id):
            wrong.append(FieldViolation("run_id", run_id, "1 to 64 characters of a-z, 0-9, '-', '_'"))
        read = read_config(config_yaml)
        wrong += read.wrong
        config = read.config
        if config is None:
            raise InvalidInput(wrong)
        known = ", ".join(self.settings.students)
        wrong += [
            FieldViolation(f"config.students[{index}]", name, f"one of this orchestrator's students: {known}")
            for index, name in enumerate(config.students)
            if name not in self.settings.students
        ]
        judges = ", ".join(self.settings.judges) or "it has none"
        wrong += [
            FieldViolation(f"config.judges[{index}]", name, f"one of this orchestrator's judges: {judges}")
            for index, name in enumerate(config.judges)
            if name not in self.settings.judges
        ]
        wrong += [
            FieldViolation(f"config.{name}", str(getattr(config, name)), "nothing: the client reads files itself")
            for name in ("documents", "retention_quiz", "limit")
            if getattr(config, name) is not None
        ]
        try:
            teacher, policy, described = await self._met(config)
        except Unavailable as error:
            # What is wrong with the input is told first: it will not get better by waiting.
            if wrong:
                raise InvalidInput(wrong) from None
            raise Unavailable(f"the run cannot start: {error}", error.retry_after_s) from None
        found: list[FieldViolation] = []
        if not policy:
            allowed = "`initial`, `latest`, `promoted` or a version that the teacher keeps"
            if config.policy == "promoted":
                allowed = "another: what is promoted cannot be used, and the teacher's log says why; promote one anew"
            found.append(FieldViolation("config.policy", config.policy, allowed))
        found += service_violations(config, teacher, described)
        if config.reward.formula and retention_quiz.questions and config.reward.retention_grader not in config.graders:
            allowed = "one of config.graders: a formula may price what was forgotten"
            found.append(FieldViolation("config.reward.retention_grader", config.reward.retention_grader, allowed))
        if config.reward.retention_penalty > 0 and not retention_quiz.questions:
            penalty = str(config.reward.retention_penalty)
            allowed = "0 without a retention quiz: nothing measures what was forgotten"
            found.append(FieldViolation("config.reward.retention_penalty", penalty, allowed))
        gate = config.commit
        if gate.when == "end" and gate.min_retention is not None and not retention_quiz.questions:
            allowed = "nothing without a retention quiz: nothing measures what was forgotten"
            found.append(FieldViolation("config.commit.min_retention", str(gate.min_retention), allowed))
        if config.update.algorithm in teacher.algorithms:
            found += await self._update_violations(config, policy)
        wrong += read.of_what_was_read(found)
        if read.left_out:
            # Services are asked about whole settings only.
            raise InvalidInput(wrong)
        format = None if any(item.field == "config.format" for item in wrong) else resolve_format(config, teacher)
        asked = Asked(config, tasks, _places(len(tasks), malformed), retention_quiz)
        refused = await start_violations(asked, format, self.teacher, self.students, described)
        wrong += without_known(wrong, refused)
        if wrong:
            raise InvalidInput(wrong)
        versions = await self.rows.versions(described)
        return Run(
            run_id=run_id,
            config=config,
            config_yaml=config_yaml,
            content_hash=digest,
            tasks={item.task.id: item for item in tasks},
            retention_quiz=retention_quiz,
            format=resolve_format(config, teacher),
            teacher=teacher,
            policy_version=policy,
            students={name: RunStudent(name, described[name], versions[name]) for name in described},
            state=RunState.RUNNING,
            message="",
            created_at=datetime.now(UTC),
            finished_at=None,
        )

    async def _update_violations(self, config: RunConfig, policy: str) -> list[FieldViolation]:
        """What the teacher would refuse once a round is paid for: the algorithm, its settings, the sampling."""
        try:
            await self.teacher.check_update(
                config.update.algorithm,
                config.update_settings(),
                config.sampling_settings(),
                parent_version=policy if config.update.when != "never" else "",
            )
        except InvalidInput as error:
            return [
                FieldViolation("config." + re.sub(r"^settings\b", "update", item.field), item.value, item.allowed)
                for item in error.violations
            ]
        return []

    async def _met(self, config: RunConfig) -> tuple[TeacherDescription, str, dict[str, StudentDescription]]:
        """What the teacher is, the policy that the run begins with, and what its students are."""
        known = [name for name in config.students if name in self.settings.students]
        until = time.monotonic() + MEET_S
        while True:
            try:
                teacher = await self.teacher.describe(timeout_s=self.settings.describe_timeout_s)
                policy = await first_policy(config.policy, teacher, self.teacher)
                return teacher, policy, await self._described(known)
            except Unavailable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.3)

    async def _described(self, names: Sequence[str]) -> dict[str, StudentDescription]:
        found = await asyncio.gather(*(self.students.describe(name) for name in names), return_exceptions=True)
        faults = [item for item in found if isinstance(item, BaseException)]
        others = [item for item in faults if not isinstance(item, Unavailable)]
        if others:
            raise others[0]
        if faults:
            raise Unavailable("; ".join(str(item) for item in faults))
        return {name: item for name, item in zip(names, found, strict=True) if isinstance(item, StudentDescription)}


def _places(count: int, malformed: Sequence[FieldViolation]) -> list[int]:
    """The indices that so many tasks had before the malformed ones were left out."""
    left_out = {int(found[1]) for item in malformed if (found := re.match(r"tasks\[(\d+)\]", item.field))}
    return [index for index in range(count + len(left_out)) if index not in left_out]

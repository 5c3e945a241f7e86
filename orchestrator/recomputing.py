"""A run's stored candidates under other settings of the reward: from its reports alone, without a student.

Both rewards are made as an update makes them, round by round over all of its groups; of a run under way, from what has
ended so far. What the other settings want of reports that these do not have is told before any is read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.group_rewards import RepeatsOf, group_rewards, measured, recomputed
from orchestrator.machine import Machine
from orchestrator.plan import Across, Group
from orchestrator.rebuilding import rebuild
from orchestrator.records import Run
from orchestrator.run_config import RewardConfig
from orchestrator.run_events import Evaluate
from orchestrator.run_violations import formula_violations
from orchestrator.store import Store
from orchestrator.teaching import first_index
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.evaluation import EvaluationOutcome, EvaluationReport
from tutelage.domain.recomputed_reward import RecomputedReward
from tutelage.domain.reward import Repeats, RewardSettings, Unscored, scored
from tutelage.settings import parse_settings

FIELD = "reward"


async def recomputed_rewards(store: Store, run: Run, reward_yaml: str) -> list[RecomputedReward]:
    """Every candidate written so far, group by group; InvalidInput names what is wrong with the settings."""
    reward = read_reward(reward_yaml, run)
    settings = reward.to_domain()
    machine = await rebuild(run, store)
    by_round: dict[int, dict[tuple[Group, str, str], Repeats]] = {}
    found = _Found()
    for task in run.tasks:
        # A task at a time: the answers of all of a long run's reports are most of a gigabyte.
        groups = [group for group in machine.groups if group.task == task]
        outcomes = await _outcomes(store, run, task)
        await asyncio.to_thread(found.look_at, outcomes.values(), settings)
        for key, repeats in (await asyncio.to_thread(recomputed, machine, groups, outcomes, settings)).items():
            by_round.setdefault(key[0].round, {})[key] = repeats
    found.check(settings)
    return await asyncio.to_thread(lambda: list(_rows(run, machine, by_round, settings, reward.across)))


def read_reward(reward_yaml: str, run: Run) -> RewardConfig:
    """The settings, with the run's own `across` where they name none."""
    try:
        reward = parse_settings(reward_yaml, RewardConfig)
    except InvalidInput as error:
        wrong = [FieldViolation(f"{FIELD}.{each.field}", each.value, each.allowed) for each in error.violations]
        raise InvalidInput(wrong) from None
    if "across" not in reward.model_fields_set:
        reward = reward.model_copy(update={"across": run.config.reward.across})
    if wrong := list(_violations(reward, run)):
        raise InvalidInput(wrong)
    return reward


def _violations(reward: RewardConfig, run: Run) -> Iterator[FieldViolation]:
    """What the settings want that the run's reports do not have."""
    config = run.config
    known = (*config.graders, *config.judges)
    for name in reward.grader_weights:
        if name not in known:
            allowed = f"one of what graded the run's reports: {', '.join(known)}"
            yield FieldViolation(f"{FIELD}.grader_weights.{name}", name, allowed)
    asked = bool(run.retention_quiz.questions)
    if reward.retention_penalty > 0 and not asked:
        allowed = "0, as the run has no retention quiz: nothing measured what was forgotten"
        yield FieldViolation(f"{FIELD}.retention_penalty", str(reward.retention_penalty), allowed)
    priced = reward.retention_penalty > 0 or bool(reward.formula)
    if asked and priced and reward.retention_grader not in config.graders:
        allowed = f"one of what graded the run's retention quiz: {', '.join(config.graders)}"
        yield FieldViolation(f"{FIELD}.retention_grader", reward.retention_grader, allowed)
    yield from formula_violations(reward.formula, f"{FIELD}.formula")
    apart = [each.across is Across.PER_STUDENT for each in (reward, config.reward)]
    if apart[0] != apart[1]:
        others = ", ".join(each for each in Across if each is not Across.PER_STUDENT)
        allowed = "per_student, as each candidate of the run was" if apart[1] else f"{others}, as no candidate was"
        yield FieldViolation(f"{FIELD}.across", reward.across, f"{allowed} written for one student")


async def _outcomes(store: Store, run: Run, task: str) -> dict[Evaluate, EvaluationOutcome]:
    return {
        Evaluate(row.round, row.task_id, row.edit, row.student, row.repeat): row.outcome
        for student in run.config.students
        for row in await store.evaluations(run.run_id, student=student, task_id=task)
        if row.phase == "round" and row.outcome is not None
    }


@dataclass
class _Found:
    """What a run's reports came to under some settings."""

    rewards: int = 0
    graders: set[str] = field(default_factory=set)
    why_not: str = ""
    """Of the first report without a reward."""

    def look_at(self, outcomes: Iterable[EvaluationOutcome], settings: RewardSettings) -> None:
        for report in outcomes:
            if not isinstance(report, EvaluationReport):
                continue
            self.graders |= report.after.scores.keys()
            found = scored(report, settings)
            if isinstance(found, Unscored):
                self.why_not = self.why_not or found.reason
            else:
                self.rewards += 1

    def check(self, settings: RewardSettings) -> None:
        """InvalidInput where no report has a reward; one that has none is left out, as in the run itself."""
        if self.rewards or not self.why_not:
            return
        for name in settings.grader_weights:
            if name not in self.graders:
                raise InvalidInput.of(f"{FIELD}.grader_weights.{name}", name, "graders that graded some of the reports")
        if settings.formula:
            allowed = f"a formula that gives some report a reward; {self.why_not}"
            raise InvalidInput.of(f"{FIELD}.formula", settings.formula, allowed)
        raise InvalidInput.of(FIELD, self.why_not, "settings under which some report has a reward")


def _check_finite(rewards: Sequence[float | None]) -> None:
    for reward in rewards:
        if reward is not None and not math.isfinite(reward):
            raise InvalidInput.of(FIELD, f"a reward of {reward}", "settings under which rewards are finite numbers")


def _rows(
    run: Run,
    machine: Machine,
    by_round: Mapping[int, RepeatsOf],
    settings: RewardSettings,
    across: Across,
) -> Iterator[RecomputedReward]:
    for round_ in sorted({group.round for group in machine.groups}):
        groups = [group for group in machine.round_groups(round_) if group in machine.groups]
        stored = group_rewards(machine, groups, measured(machine, groups), run.config.reward_settings())
        other = group_rewards(machine, groups, by_round.get(round_, {}), settings, across)
        for group in groups:
            # Each is a number; their sum may still be none.
            _check_finite(other[group])
            first = first_index(run, group)
            for index, (before, after) in enumerate(zip(stored[group], other[group], strict=True), start=first):
                name = f"{run.run_id}/{round_}/{group.task}/{index}"
                yield RecomputedReward(name, round_, group.task, group.audience, before, after)

"""A teacher's course on one classroom: it writes, is scored, learns by several recipes, and is compared with before.

Both teachers of a comparison write from the same seeds, and the student trains under the same ones, so that all
differences are paired. What is asked for again comes out of the classroom's folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.classroom import Classroom, documents, passage_only
from orchestrator.prompt_places import MISTAKES
from orchestrator.report.bootstrap import Interval, paired_interval
from orchestrator.student_profile import MOST_MISTAKES, Mistake, not_asked_by, wrong_before
from orchestrator.teaching import addressed, informed
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.policy import (
    WITH_DIRECTIVES,
    Candidate,
    CandidateGroup,
    ScoredCandidate,
    UpdateResult,
    UpdateSettings,
)
from tutelage.domain.reward import RewardSettings, reward_of
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit

REWARD = RewardSettings(grader_weights={"contains": 1.0, "loglik": 0.1}, rejected_reward=0.0)
LEARNING_REWARD = replace(REWARD, rejected_reward=-0.1)
"""What a policy learns from. On held-out documents a rejected edit leaves the student as it is, which is worth 0; here
it is a little worse, or a policy whose notes do harm learns to write none."""
METRICS = ("reward", "contains", "loglik")
"""The run's reward; the gains over the untouched student that it is made of."""
PROFILED = "+student"
"""Behind it all: the prompt tells of the student, and of what it got wrong about other documents. Beside the same
format without it, this is the ablation of what such a profile is worth."""
SETTINGS = {
    "rest_em": UpdateSettings(rank=32, alpha=64, learning_rate=3e-4, epochs=3, batch_size=8),
    "grpo": UpdateSettings(
        rank=32,
        alpha=64,
        learning_rate=1e-3,
        epochs=1,
        batch_size=8,
        # Not by a group's deviation: where rewards hardly differ, what differs is noise.
        options={"beta": 0.01, "scale_rewards": "none"},
    ),
    "rloo": UpdateSettings(
        rank=32,
        alpha=64,
        learning_rate=1e-3,
        epochs=1,
        batch_size=8,
        # Of a line of some ten tokens rounding clips little.
        options={"beta": 0.005, "log_probs": "recorded"},
    ),
    "dpo": UpdateSettings(rank=32, alpha=64, learning_rate=3e-4, epochs=2, batch_size=4),
}
"""One round of some ten to thirty steps has to move a policy, so that learning rates are above those that
docs/algorithms.md begins with."""
OF_THE_LINE = ("rest_em", "grpo", "rloo")
"""Algorithms that learn only the line of directives where candidates begin with one. Most of a reward here is by how an
edit is trained on, and notes of a small model that learns from its own lose their language. The anchor keeps the notes
as they were: some steps on a line of ten tokens change them too."""


def settings_of(recipe: Recipe) -> UpdateSettings:
    """Of an update by this recipe."""
    settings = SETTINGS[recipe.algorithm]
    if WITH_DIRECTIVES not in recipe.format or recipe.algorithm not in OF_THE_LINE:
        return settings
    return replace(settings, options={**settings.options, "part": "first_line", "anchor": 1.0})


@dataclass(frozen=True)
class Recipe:
    """What a policy is made by."""

    algorithm: str
    format: str


@dataclass(frozen=True)
class Asked:
    """Self-edits that a teacher is asked for."""

    item: TaskWithQuiz
    format: str
    policy: str
    count: int
    purpose: str
    repeats: int = 0
    """Evaluations of each, under seeds of their own; candidates of a group have the same, so that they compare. 0: one
    evaluation of each candidate, under a seed of its own."""

    @property
    def by(self) -> tuple[str, str]:
        """The teacher: its format and its policy."""
        return self.format, self.policy


@dataclass(frozen=True)
class Round:
    """What a policy wrote about the learning documents, and what came of learning from it."""

    reward: float
    """Mean of the candidates: what the policy before the update earned."""
    scored: int
    kilotokens: float
    """That the student trained on for the rewards; algorithms of one format share those of the first round."""
    update: UpdateResult


@dataclass
class Learned:
    """A recipe's policy: its rounds, and how it did on the choosing documents after the first."""

    recipe: Recipe
    rounds: list[Round]
    difference: Interval | None = None
    untrained: float = 0.0
    trained: float = 0.0

    @property
    def policy(self) -> str:
        """Version of the policy after all rounds so far."""
        return self.rounds[-1].update.policy.version


@dataclass(frozen=True)
class Worth:
    """What a profile of the student in the prompt is worth to a teacher."""

    format: str
    teacher: str
    without: float
    told: float
    difference: Interval


@dataclass(frozen=True)
class Scores:
    """Of one teacher on some documents."""

    gains: dict[str, list[float]]
    """By metric a document's mean over seeds."""
    rejected: int
    """Self-edits that were, by the parser or the student."""
    kilotokens: float
    """That the student trained on: a teacher whose directives ask for more work can win by that alone."""


class Course:
    """The stages, on one classroom; each does again what those before it did, out of the folder."""

    def __init__(self, room: Classroom, args: argparse.Namespace) -> None:
        self.room, self.args = room, args
        for name in args.formats:
            room.formats[name] = replace(room.formats[name.removesuffix(PROFILED)], name=name)
        self.recipes = [
            *(Recipe(algorithm, args.formats[0]) for algorithm in args.algorithms),
            *(Recipe("rest_em", name) for name in args.formats[1:]),
        ]
        train = documents("train", args.learn_documents + args.choose_documents, args.model, args.train_file)
        self.learning, self.choosing = train[: args.learn_documents], train[args.learn_documents :]
        self.held_out = documents("heldout", args.documents, args.model, args.judge_file)
        self.untrained = room.policies.initial.version

    def write(self, item: TaskWithQuiz, format_name: str, count: int, policy: str, purpose: str) -> list[Candidate]:
        """Candidates; where the format tells of the student, what it got wrong is of other documents than this one."""
        if not format_name.endswith(PROFILED):
            return self.room.write(item, format_name, count, policy, purpose)
        others = [wrong for known, wrong in self.mistakes() if known.task.id != item.task.id]
        wrong = [mistake for known in others[:MOST_MISTAKES] for mistake in not_asked_by(item.quiz, known)[:1]]
        plain, own = self.room.formats[format_name], f"{format_name} of {item.task.id}"
        asking = replace(plain, prompt=f"{plain.prompt}\n\nWrong so far:\n{MISTAKES}")
        # As a run does for a group that is written for one student.
        to_student = addressed(asking, {"student": self.room.described}, alone=True)
        self.room.formats[own] = informed(to_student, wrong)
        return self.room.write(item, own, count, policy, purpose)

    def mistakes(self) -> list[tuple[TaskWithQuiz, list[Mistake]]]:
        """What the student got wrong of the first learning documents, where a format tells the teacher of it."""
        if not any(name.endswith(PROFILED) for name in self.args.formats):
            return []
        return [(known, self._mistakes(known)) for known in self.learning[: MOST_MISTAKES + 1]]

    def _mistakes(self, item: TaskWithQuiz) -> list[Mistake]:
        outcome = self.room.evaluate(item, passage_only(item))[1]
        assert isinstance(outcome, EvaluationReport)
        return wrong_before(outcome, item.quiz)

    def graded(self, asked: Sequence[Asked]) -> list[list[tuple[Candidate, list[EvaluationReport | None]]]]:
        """The candidates of each, with their reports (None where an edit was rejected); all at work at once."""

        def written(each: Asked) -> list[tuple[Candidate, list[EvaluationReport | None]]]:
            def reports(candidate: Candidate) -> list[EvaluationReport | None]:
                if not isinstance(candidate.result, SelfEdit):
                    return [None]
                edit = candidate.result
                seeds = range(each.repeats) if each.repeats else [candidate.index]
                outcomes = self.room.each(lambda seed: self.room.evaluate(each.item, edit, repeat=seed)[1], list(seeds))
                return [outcome if isinstance(outcome, EvaluationReport) else None for outcome in outcomes]

            candidates = self.write(each.item, each.format, each.count, each.policy, each.purpose)
            return list(zip(candidates, self.room.each(reports, candidates), strict=True))

        return self.room.each(written, asked)

    def collect(
        self, teachers: Sequence[tuple[str, str]], items: Sequence[TaskWithQuiz], round_: int = 1
    ) -> dict[tuple[str, str], tuple[list[CandidateGroup], float]]:
        """By teacher, a format and a policy, the scored groups, and the thousands of tokens the student trained on."""
        purpose = "collect" if round_ == 1 else f"collect {round_}"
        count, repeats = self.args.candidates, self.args.evaluation_seeds
        asked = [Asked(item, *teacher, count, purpose, repeats) for teacher in teachers for item in items]
        found: dict[tuple[str, str], tuple[list[CandidateGroup], float]] = {}
        for each, graded in zip(asked, self.graded(asked), strict=True):
            name = each.item.task.id
            members = tuple(
                ScoredCandidate(f"{name}/{candidate.index}", candidate.rollout, _learning_reward(reports))
                for candidate, reports in graded
            )
            groups, tokens = found.get(each.by, ([], 0.0))
            more = sum(report.cost.tokens for _, reports in graded for report in reports if report) / 1000
            found[each.by] = ([*groups, CandidateGroup(name, members)], tokens + more)
        return found

    @property
    def beginners(self) -> list[tuple[str, str]]:
        """The untrained teacher in each format."""
        return [(name, self.untrained) for name in self.args.formats]

    def learn(self) -> list[Learned]:
        """The policy of each recipe after one round; algorithms share their format's candidates."""
        scored = self.collect(self.beginners, self.learning)
        learned = []
        for recipe in self.recipes:
            teacher = recipe.format, self.untrained
            learned.append(Learned(recipe, [self._round(recipe, self.untrained, *scored[teacher])]))
        return learned

    def advanced(self, learned: Learned, rounds: int) -> Learned:
        """The recipe after `rounds` rounds in all, each from what its policy so far writes.

        Those after the first are by the algorithm that `--then` names.
        """
        later = replace(learned.recipe, algorithm=self.args.then)
        while len(learned.rounds) < rounds:
            scored = self.collect_next(learned, self.learning)
            learned.rounds.append(self._round(later, learned.policy, *scored))
        return learned

    def collect_next(self, learned: Learned, items: Sequence[TaskWithQuiz]) -> tuple[list[CandidateGroup], float]:
        """What its next round learns from, about some of the documents."""
        teacher = learned.recipe.format, learned.policy
        return self.collect([teacher], items, len(learned.rounds) + 1)[teacher]

    def _round(self, recipe: Recipe, parent: str, groups: list[CandidateGroup], kilotokens: float) -> Round:
        result = self.room.update(groups, settings_of(recipe), parent, recipe.algorithm)
        rewards = [candidate.reward or 0.0 for group in groups for candidate in group.candidates]
        return Round(mean(rewards), len(rewards), kilotokens, result)

    def choose(self) -> list[Learned]:
        """Every recipe with its figures on the choosing documents, the surest to be better first.

        By the lower end of the interval: of some documents the greatest mean is often the widest. One needs no choice.
        """
        learned = self.learn()
        if len(learned) == 1:
            return learned
        scores = self.scores(learned, self.choosing, "choose")
        for each in learned:
            before, after = (scores[each.recipe.format, policy].gains["reward"] for policy in self.policies(each))
            each.difference = paired_interval(before, after, seed=self.args.seed)
            each.untrained, each.trained = mean(before), mean(after)
        return sorted(learned, key=lambda each: -(each.difference.low if each.difference else 0.0))

    def profile_worth(self, learned: Sequence[Learned]) -> list[Worth]:
        """On the choosing documents, what telling the teacher of the student changes: untrained, and after a round."""
        pairs = [
            (each, other)
            for each in learned
            for other in learned
            if each.recipe.format + PROFILED == other.recipe.format and each.recipe.algorithm == other.recipe.algorithm
        ]
        scores = self.scores([one for pair in pairs for one in pair], self.choosing, "choose")
        found = []
        for plain, told in pairs:
            for name, before, after in (
                ("untrained", self.untrained, self.untrained),
                (plain.recipe.algorithm, plain.policy, told.policy),
            ):
                without = scores[plain.recipe.format, before].gains["reward"]
                with_ = scores[told.recipe.format, after].gains["reward"]
                gap = paired_interval(without, with_, seed=self.args.seed)
                assert gap is not None
                found.append(Worth(plain.recipe.format, name, mean(without), mean(with_), gap))
        return found

    def policies(self, each: Learned) -> tuple[str, str]:
        """Untrained and trained."""
        return self.untrained, each.policy

    def scores(
        self, learned: Sequence[Learned], items: Sequence[TaskWithQuiz], stage: str
    ) -> dict[tuple[str, str], Scores]:
        """Of the untrained and the trained teacher of each recipe, by format and policy."""
        seeds = self.args.seeds if stage == "judge" else self.args.choose_seeds
        teachers = list(dict.fromkeys((each.recipe.format, one) for each in learned for one in self.policies(each)))
        asked = [Asked(item, *teacher, seeds, stage) for teacher in teachers for item in items]
        graded = self.graded(asked)
        return {
            teacher: _scores([found for each, found in zip(asked, graded, strict=True) if each.by == teacher], seeds)
            for teacher in teachers
        }


def _learning_reward(reports: Sequence[EvaluationReport | None]) -> float:
    """Mean over the seeds."""
    rejected = LEARNING_REWARD.rejected_reward or 0.0
    return mean([reward_of(report, LEARNING_REWARD).value if report else rejected for report in reports])


def _scores(graded: Sequence[Sequence[tuple[Candidate, list[EvaluationReport | None]]]], seeds: int) -> Scores:
    gains: dict[str, list[float]] = {name: [] for name in METRICS}
    for document in graded:
        rewards = [reward_of(report, REWARD) for _, reports in document for report in reports if report]
        gains["reward"].append(sum(reward.value for reward in rewards) / seeds)
        for name in METRICS[1:]:
            gains[name].append(sum(reward.parts[f"gain_{name}"] for reward in rewards) / seeds)
    reports = [report for document in graded for _, each in document for report in each]
    tokens = sum(report.cost.tokens for report in reports if report)
    return Scores(gains, reports.count(None), tokens / 1000)


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / len(values) if values else 0.0

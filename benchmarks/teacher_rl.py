"""Does RL make a better teacher? Trained against untrained on held-out documents; recipe chosen on training documents.

Four stages. What they find lies in the folder, so that a run that was cut off, or asked for stage by stage, goes on:

    collect   candidates of the untrained teacher about the learning documents, each with its reward
    learn     a policy of each recipe (algorithm, format) from those; algorithms share their format's candidates
    choose    each policy beside the untrained one on the choosing documents; the greatest difference is taken
    judge     that recipe beside the untrained teacher on the held-out documents, once

Both teachers write from the same seeds, and the student trains under the same ones, so that all differences are paired.
The metric is the run's own reward, the gain by `contains` plus a tenth of the gain in log-likelihood; a rejected edit
earns 0. Intervals: 95 %, bootstrap over documents.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import Classroom, Setup, documents, passage_only
from orchestrator.report.bootstrap import Interval, paired_interval
from orchestrator.student_profile import MOST_MISTAKES, Mistake, told, wrong_before
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.policy import Candidate, CandidateGroup, Sampling, ScoredCandidate, UpdateResult, UpdateSettings
from tutelage.domain.reward import RewardSettings, reward_of
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit

STAGES = ("collect", "learn", "choose", "judge")
REWARD = RewardSettings(grader_weights={"contains": 1.0, "loglik": 0.1}, rejected_reward=0.0)
METRICS = ("reward", "contains", "loglik")
"""The run's reward; the gains over the untouched student that it is made of."""
DIRECTED = "+directives"
"""Behind a format's name: its notes begin with directives."""
PROFILED = "+student"
"""Behind it all: the prompt tells of the student, and of what it got wrong about other documents. Beside the same
format without it, this is the ablation of what such a profile is worth."""
SETTINGS = {
    "rest_em": UpdateSettings(rank=32, alpha=64, learning_rate=3e-4, epochs=3, batch_size=8),
    "grpo": UpdateSettings(rank=32, alpha=64, learning_rate=1e-4, epochs=2, batch_size=16),
    "rloo": UpdateSettings(rank=32, alpha=64, learning_rate=1e-4, epochs=2, batch_size=16),
    "dpo": UpdateSettings(rank=32, alpha=64, learning_rate=1e-4, epochs=3, batch_size=8),
}
"""A round is small here, so that learning rates are above those that docs/algorithms.md begins with."""


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

    @property
    def by(self) -> tuple[str, str]:
        """The teacher: its format and its policy."""
        return self.format, self.policy

    @property
    def repeats(self) -> bool:
        """Whether each trains under a seed of its own; candidates of a group have the same, so that they compare."""
        return self.purpose != "collect"


@dataclass
class Learned:
    """A recipe's policy: what it learned from, what that cost, and how it did on the choosing documents."""

    recipe: Recipe
    update: UpdateResult
    scored: int
    trained_kilotokens: float
    """That the student trained on for the rewards; algorithms of one format share them."""
    difference: Interval | None = None
    untrained: float = 0.0
    trained: float = 0.0


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
            directed = name.removesuffix(PROFILED)
            known = room.formats[directed.removesuffix(DIRECTED)]
            room.formats[name] = replace(known, name=name, directives=directed.endswith(DIRECTED))
        self.recipes = [
            *(Recipe(algorithm, args.formats[0]) for algorithm in args.algorithms),
            *(Recipe("rest_em", name) for name in args.formats[1:]),
        ]
        train = documents("train", args.learn_documents + args.choose_documents, args.model)
        self.learning, self.choosing = train[: args.learn_documents], train[args.learn_documents :]
        self.held_out = documents("heldout", args.documents, args.model)
        self.untrained = room.policies.initial.version

    def write(self, item: TaskWithQuiz, format_name: str, count: int, policy: str, purpose: str) -> list[Candidate]:
        """Candidates; where the format tells of the student, what it got wrong is of other documents than this one."""
        if not format_name.endswith(PROFILED):
            return self.room.write(item, format_name, count, policy, purpose)
        others = [known for known in self.learning[: MOST_MISTAKES + 1] if known.task.id != item.task.id]
        wrong = [mistake for known in others[:MOST_MISTAKES] for mistake in self._mistakes(known)[:1]]
        plain, own = self.room.formats[format_name], f"{format_name} of {item.task.id}"
        who = f"Write for a {self.args.model} model. Wrong so far:\n{told(wrong)}"
        self.room.formats[own] = replace(plain, prompt=f"{who}\n\n{plain.prompt}")
        return self.room.write(item, own, count, policy, purpose)

    def _mistakes(self, item: TaskWithQuiz) -> list[Mistake]:
        outcome = self.room.evaluate(item, passage_only(item))[1]
        assert isinstance(outcome, EvaluationReport)
        return wrong_before(outcome, item.quiz)

    def graded(self, asked: Sequence[Asked]) -> list[list[tuple[Candidate, EvaluationReport | None]]]:
        """The candidates of each, with their reports (None where an edit was rejected); all at work at once."""

        def written(each: Asked) -> list[tuple[Candidate, EvaluationReport | None]]:
            def report(candidate: Candidate) -> EvaluationReport | None:
                if not isinstance(candidate.result, SelfEdit):
                    return None
                repeat = candidate.index if each.repeats else 0
                outcome = self.room.evaluate(each.item, candidate.result, repeat=repeat)[1]
                return outcome if isinstance(outcome, EvaluationReport) else None

            candidates = self.write(each.item, each.format, each.count, each.policy, each.purpose)
            return list(zip(candidates, self.room.each(report, candidates), strict=True))

        return self.room.each(written, asked)

    def collect(self, items: Sequence[TaskWithQuiz]) -> dict[str, tuple[list[CandidateGroup], float]]:
        """By format the scored groups, and the thousands of tokens that the student trained on."""
        count, untrained = self.args.candidates, self.untrained
        asked = [Asked(item, name, untrained, count, "collect") for name in self.args.formats for item in items]
        found: dict[str, tuple[list[CandidateGroup], float]] = {}
        for each, graded in zip(asked, self.graded(asked), strict=True):
            name = each.item.task.id
            members = tuple(
                ScoredCandidate(
                    f"{name}/{candidate.index}",
                    candidate.rollout,
                    reward_of(report, REWARD).value if report else REWARD.rejected_reward,
                )
                for candidate, report in graded
            )
            groups, tokens = found.get(each.format, ([], 0.0))
            more = sum(report.cost.tokens for _, report in graded if report) / 1000
            found[each.format] = ([*groups, CandidateGroup(name, members)], tokens + more)
        return found

    def learn(self) -> list[Learned]:
        """The policy of each recipe."""
        collected = self.collect(self.learning)
        learned = []
        for recipe in self.recipes:
            groups, kilotokens = collected[recipe.format]
            result = self.room.update(groups, SETTINGS[recipe.algorithm], self.untrained, recipe.algorithm)
            scored = sum(len(group.candidates) for group in groups)
            learned.append(Learned(recipe, result, scored, kilotokens))
        return learned

    def choose(self) -> list[Learned]:
        """Every recipe with its figures on the choosing documents, the greatest difference first."""
        learned = self.learn()
        scores = self.scores(learned, self.choosing, "choose")
        for each in learned:
            before, after = (scores[each.recipe.format, policy].gains["reward"] for policy in self.policies(each))
            each.difference = paired_interval(before, after, seed=self.args.seed)
            each.untrained, each.trained = _mean(before), _mean(after)
        return sorted(learned, key=lambda each: -(each.difference.mean if each.difference else 0.0))

    def policies(self, each: Learned) -> tuple[str, str]:
        """Untrained and trained."""
        return self.untrained, each.update.policy.version

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


def _scores(graded: Sequence[Sequence[tuple[Candidate, EvaluationReport | None]]], seeds: int) -> Scores:
    gains: dict[str, list[float]] = {name: [] for name in METRICS}
    for document in graded:
        rewards = [reward_of(report, REWARD) for _, report in document if report]
        gains["reward"].append(sum(reward.value for reward in rewards) / seeds)
        for name in METRICS[1:]:
            gains[name].append(sum(reward.parts[f"gain_{name}"] for reward in rewards) / seeds)
    reports = [report for document in graded for _, report in document]
    tokens = sum(report.cost.tokens for report in reports if report)
    return Scores(gains, reports.count(None), tokens / 1000)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def show(learned: Sequence[Learned]) -> None:
    """The table of recipes, the best first."""
    print("\n| algorithm | format | kept | student's tokens | update | untrained | trained | difference [95 %] |")
    print("|---|---|---|---|---|---|---|---|")
    for each in learned:
        update, gap = each.update, each.difference
        cost = f"{update.train_seconds:.0f} s, {update.peak_memory_bytes / 2**30:.1f} GiB"
        judged = f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" if gap else "-"
        print(
            f"| {each.recipe.algorithm} | {each.recipe.format} | {update.kept_candidates} of {each.scored} "
            f"| {each.trained_kilotokens:.0f} k | {cost} | {each.untrained:+.3f} | {each.trained:+.3f} | {judged} |"
        )


def row(each: Learned) -> dict[str, object]:
    """A recipe in the last line's JSON."""
    return {
        "algorithm": each.recipe.algorithm,
        "format": each.recipe.format,
        "scored": each.scored,
        "kept": each.update.kept_candidates,
        "update_seconds": round(each.update.train_seconds, 1),
        "student_kilotokens": round(each.trained_kilotokens, 1),
        "difference": round(each.difference.mean, 5) if each.difference else None,
    }


def run_shares(args: argparse.Namespace, folder: Path, stage: str) -> None:
    """A stage by several processes, each on its share of the documents."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--stage", stage]
    parts = [subprocess.Popen([*command, "--share", str(share)]) for share in range(args.processes)]
    try:
        codes = [part.wait() for part in parts]
        if any(codes):
            raise SystemExit(f"a process of stage {stage} failed")
    finally:
        for part in parts:
            part.kill()


def do_share(course: Course, stage: str, share: slice) -> None:
    """A process's part of a stage."""
    if stage == "collect":
        course.collect(course.learning[share])
    elif stage == "choose":
        course.scores(course.learn(), course.choosing[share], stage)
    else:
        course.scores(course.choose()[:1], course.held_out[share], stage)


def do_all(course: Course, stage: str) -> dict[str, object]:
    """A stage and all before it, as far as the folder does not hold them yet; what the last line tells."""
    args = course.args
    if stage == "collect":
        means = {
            name: _mean([item.reward or 0.0 for group in groups for item in group.candidates])
            for name, (groups, _) in course.collect(course.learning).items()
        }
        return {"stage": stage, "mean_reward": means}
    learned = course.learn() if stage == "learn" else course.choose()
    show(learned)
    recipes = [row(each) for each in learned]
    if stage != "judge":
        return {"stage": stage, "recipes": recipes}
    scores = course.scores(learned[:1], course.held_out, stage)
    before, after = (scores[learned[0].recipe.format, policy] for policy in course.policies(learned[0]))
    found = {}
    for name in METRICS:
        gap = paired_interval(before.gains[name], after.gains[name], seed=args.seed)
        assert gap is not None
        values = (_mean(before.gains[name]), _mean(after.gains[name]), gap.mean, gap.low, gap.high)
        found[name] = dict(
            zip(("untrained", "trained", "difference", "low", "high"), (round(v, 5) for v in values), strict=True)
        )
    return {
        "metric": "reward",
        **found["reward"],
        "documents": len(course.held_out),
        "seeds": args.seeds,
        "algorithm": learned[0].recipe.algorithm,
        "format": learned[0].recipe.format,
        **{name: found[name] for name in METRICS[1:]},
        "rejected": {"untrained": before.rejected, "trained": after.rejected},
        "student_kilotokens": {"untrained": round(before.kilotokens, 1), "trained": round(after.kilotokens, 1)},
        "recipes": recipes,
    }


def work(args: argparse.Namespace, folder: Path, stage: str) -> dict[str, object]:
    """A process's share of a stage, or the whole of it."""
    setup = Setup(args.model, "nf4", args.threads, args.seed, args.slots)
    own = args.processes if args.share is None else args.share
    sampling = Sampling(temperature=args.temperature, max_new_tokens=args.new_tokens)
    room = Classroom(setup, sampling=sampling, folder=folder, own=own)
    try:
        course = Course(room, args)
        if args.share is None:
            return do_all(course, stage)
        do_share(course, stage, slice(args.share, None, args.processes))
        return {"stage": stage, "share": args.share}
    finally:
        room.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--stage", choices=STAGES, default="judge", help="the last stage to do; those before are done")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=56, help="held-out documents")
    parser.add_argument("--seeds", type=int, default=3, help="self-edits of each teacher a held-out document")
    parser.add_argument("--learn-documents", type=int, default=20)
    parser.add_argument("--choose-documents", type=int, default=12)
    parser.add_argument("--choose-seeds", type=int, default=1)
    parser.add_argument("--candidates", type=int, default=4, help="a learning document")
    parser.add_argument("--algorithms", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    formats = ["self-qa+directives", "implications+directives", "self-qa"]
    parser.add_argument("--formats", nargs="+", default=formats, help="the first with each algorithm, all with rest_em")
    parser.add_argument("--temperature", type=float, default=0.7, help="that both teachers write at; top_p is 1")
    parser.add_argument("--new-tokens", type=int, default=208, help="longest self-edit")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--slots", type=int, default=12, help="evaluations trained side by side in a process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps what was found; the same command goes on from it")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents, args.seeds, args.processes = "tiny", 2, 2, 1
        args.learn_documents, args.choose_documents, args.candidates = 2, 2, 3
        args.algorithms, args.formats = ["rest_em", "grpo"], ["none", "rewrite+student"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as temporary:
        folder = args.folder or Path(temporary)
        if args.share is None and args.processes > 1:
            for stage in STAGES[: STAGES.index(args.stage) + 1]:
                # Learning is no work to be shared: the updates of one teacher take turns.
                if stage == "learn":
                    work(args, folder, stage)
                else:
                    run_shares(args, folder, stage)
        told = work(args, folder, args.stage)
    if args.share is None:
        seconds = time.monotonic() - begun
        print(f"\n{args.model}, {platform.machine()}, {args.threads} threads, seed {args.seed}, {seconds:.0f} s")
        print(json.dumps({**told, "seed": args.seed, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()

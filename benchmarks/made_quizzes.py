"""Do rewards from made quizzes rank self-edits as those from given ones do? Spearman's correlation, with intervals.

For each document the untrained teacher writes a quiz, kept as far as it passes the checks of `orchestrator.adapt_quiz`
and `orchestrator.answer_check`, and some self-edits; with `--written` the quiz is of another model, out of a file of
its self-edits. A student is trained on each self-edit and asked the given and the made questions in one quiz, so that
both rewards are of the same training. Ranks are compared within documents, which is what a policy learns from: the
rewards of a document less their mean, all documents together; and over all self-edits as they are. Intervals: 95 %,
bootstrap over documents.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import GRADERS, Classroom, Setup, documents
from orchestrator.adapt_quiz import FORMAT, SAMPLING, TRIES, questions_of
from orchestrator.answer_check import ANSWER_TOKENS, prompts_of, verdict
from teacher.parsing import parse_completion
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.made_quiz import DEFAULT_CHECK, Dropped, QuizCheck
from tutelage.domain.policy import Sampling
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit
from tutelage.domain.task import DocumentTask, Question, Quiz

RESAMPLES = 2000
WEIGHTS = {"contains": 1.0, "loglik": 0.1}
"""The default reward; its parts are compared too."""
MADE = "made-"


@dataclass(frozen=True)
class Rewards:
    """Of the self-edits of one document, by the questions that were given and by those that were made."""

    given: tuple[float, ...]
    made: tuple[float, ...]


def written_by_teacher(room: Classroom, item: TaskWithQuiz) -> list[SelfEdit]:
    """What the untrained teacher writes when it is asked for a quiz."""
    room.formats[FORMAT.name] = FORMAT
    sampling = replace(SAMPLING, max_new_tokens=24) if room.setup.model == "tiny" else SAMPLING
    written = room.write(item, FORMAT.name, TRIES, room.policies.initial.version, "quiz", sampling)
    return [each.result for each in written if isinstance(each.result, SelfEdit)]


def written_before(path: Path, items: Sequence[TaskWithQuiz]) -> dict[str, list[SelfEdit]]:
    """By task, the questions of a file of self-edits, as another model wrote them."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tasks = {item.task.id: item.task for item in items}
    parsed = {
        line["task_id"]: parse_completion(line["text"], FORMAT, tasks[line["task_id"]]).result
        for line in lines
        if line["task_id"] in tasks
    }
    return {name: [edit] for name, edit in parsed.items() if isinstance(edit, SelfEdit)}


def made_questions(
    room: Classroom, item: TaskWithQuiz, edits: Sequence[SelfEdit], most: int, check: QuizCheck
) -> tuple[tuple[Question, ...], Counter[Dropped]]:
    """What was asked, as far as it passes the checks, and what does not."""
    first = room.policies.initial.version
    questions, dropped = questions_of(item.task, edits)
    assert isinstance(item.task.content, DocumentTask)
    prompts = [prompts_of(item.task.content, question, check) for question in questions]
    answers = iter(text for _, text in sorted(room.writer.answer([*chain(*prompts)], first, ANSWER_TOKENS)))
    why = [
        verdict(question, [next(answers) for _ in asked]) for question, asked in zip(questions, prompts, strict=True)
    ]
    dropped.update(reason for reason in why if reason)
    return tuple(question for question, reason in zip(questions, why, strict=True) if reason is None)[:most], dropped


def gain(report: EvaluationReport, grader: str, made: bool) -> float:
    """Mean gain over the untouched student on the made, or on the given questions."""
    before = {answer.question_id: answer.scores[grader] for answer in report.before.answers}
    gains = [
        answer.scores[grader] - before[answer.question_id]
        for answer in report.after.answers
        if answer.question_id.startswith(MADE) is made
    ]
    return math.fsum(gains) / len(gains)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    array = np.asarray(values, dtype=float)
    less = (array[None, :] < array[:, None]).sum(1)
    equal = (array[None, :] == array[:, None]).sum(1)
    return np.asarray(less + (equal + 1) / 2)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one of them has no spread, so that nothing is ranked."""
    first, second = ranks(one) - (len(one) + 1) / 2, ranks(other) - (len(other) + 1) / 2
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def correlation(items: Sequence[Rewards], within: bool) -> float:
    """Over the self-edits of all documents; `within`: less their document's mean."""

    def flat(groups: Sequence[Sequence[float]]) -> list[float]:
        # Rounded, so that a mean's last digit makes no ranks of equal rewards.
        return [round(value - within * math.fsum(group) / len(group), 9) for group in groups for value in group]

    return spearman(flat([item.given for item in items]), flat([item.made for item in items]))


def measured(items: Sequence[Rewards], within: bool, seed: int) -> dict[str, float]:
    """The correlation and its interval."""
    draw = np.random.default_rng(seed)
    found = [
        correlation([items[place] for place in draw.integers(0, len(items), len(items))], within)
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return {"spearman": correlation(items, within), "low": float(low), "high": float(high)}


def evaluated(
    room: Classroom, args: argparse.Namespace
) -> tuple[list[list[EvaluationReport]], int, int, Counter[Dropped]]:
    """Reports by document, over given and made questions; made questions in all; documents left out for too few.

    And why questions were dropped.
    """

    items = documents("train" if args.written is None else "heldout", args.documents, args.model)
    before = {} if args.written is None else written_before(args.written, items)

    def reports_of(item: TaskWithQuiz) -> tuple[int, list[EvaluationReport], Counter[Dropped]]:
        asking = written_by_teacher(room, item) if args.written is None else before.get(item.task.id, [])
        made, dropped = made_questions(room, item, asking, args.questions, QuizCheck(args.check))
        if args.model == "tiny":
            # Tiny models write no questions: the given ones stand in, which shows the machinery and nothing else.
            made = item.quiz.questions[:2]
        if len(made) < args.least:
            return 0, [], dropped
        both = tuple(replace(question, id=f"{MADE}{place}") for place, question in enumerate(made))
        asked = replace(item, quiz=Quiz((*item.quiz.questions, *both)))
        written = room.write(item, args.format, args.candidates, room.policies.initial.version, "collect")
        edits = [each.result for each in written if isinstance(each.result, SelfEdit)]
        outcomes = room.each(lambda edit: room.evaluate(asked, edit)[1], edits)
        return len(made), [outcome for outcome in outcomes if isinstance(outcome, EvaluationReport)], dropped

    found = room.each(reports_of, items)
    used = [(made, reports) for made, reports, _ in found if len(reports) > 1]
    dropped = sum((each for _, _, each in found), Counter[Dropped]())
    return [reports for _, reports in used], sum(made for made, _ in used), len(found) - len(used), dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--questions", type=int, default=6, help="most questions made for a document")
    parser.add_argument("--least", type=int, default=2, help="with fewer a document is left out")
    parser.add_argument("--written", type=Path, help="self-edits about the held-out documents to take questions from")
    parser.add_argument("--check", default=DEFAULT_CHECK, choices=list(QuizCheck), help="what made questions must pass")
    parser.add_argument("--format", default="self-qa+directives")
    parser.add_argument("--temperature", type=float, default=0.7, help="that self-edits are written at; top_p is 1")
    parser.add_argument("--new-tokens", type=int, default=160, help="longest self-edit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=12, help="evaluations trained side by side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps reports here; the same command goes on from them")
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents, args.candidates, args.format = "tiny", 3, 3, "none"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as temporary:
        setup = Setup(args.model, "nf4", args.threads, args.seed, args.slots)
        sampling = Sampling(temperature=args.temperature, max_new_tokens=args.new_tokens)
        room = Classroom(setup, sampling=sampling, folder=args.folder or Path(temporary))
        try:
            reports, made, left_out, dropped = evaluated(room, args)
        finally:
            room.close()
    if not reports:
        raise SystemExit(f"no document got enough questions, or two self-edits: nothing to compare; {dict(dropped)}")
    edits = sum(len(each) for each in reports)
    print(
        f"{args.model}, {args.format}, {platform.machine()}, seed {args.seed}: {len(reports)} documents "
        f"({left_out} left out), {made} questions made, {edits} self-edits; check {args.check}, "
        f"dropped: {', '.join(f'{count} {why.value}' for why, count in dropped.items()) or 'none'}"
    )
    print("| reward | within documents [95 %] | over all [95 %] |\n|---|---|---|")
    told: dict[str, dict[str, dict[str, float]]] = {}
    gains = {
        name: [
            Rewards(*(tuple(gain(each, name, kind) for each in group) for kind in (False, True))) for group in reports
        ]
        for name in GRADERS
    }
    gains["blend (default)"] = [
        Rewards(
            *(tuple(sum(WEIGHTS[n] * gain(each, n, kind) for n in WEIGHTS) for each in group) for kind in (False, True))
        )
        for group in reports
    ]
    for name, items in gains.items():
        told[name] = {
            kind: {key: round(value, 4) for key, value in measured(items, within, args.seed).items()}
            for kind, within in (("within", True), ("all", False))
        }
        cells = " | ".join(f"{m['spearman']:+.2f} [{m['low']:+.2f}, {m['high']:+.2f}]" for m in told[name].values())
        print(f"| {name} | {cells} |")
    print(f"\n{time.monotonic() - begun:.0f} s")
    print(
        json.dumps(
            {"documents": len(reports), "left_out": left_out, "questions": made, "edits": edits, "rewards": told}
            | {"seed": args.seed, "check": args.check, "dropped": dropped}
        )
    )


if __name__ == "__main__":
    main()

"""Do the graders agree with a judge? Agreement and Cohen's kappa on answers that a large model judged, with intervals.

The answers are parted into two halves by a hash of their question: graders were developed on one and are measured on
the other, so that no question is in both. Intervals: 95 %, bootstrap over questions, whose answers are alike.
`--quick` takes a few pairs written for this project instead; they are no measure of agreement with anyone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.grading import STRING_GRADERS, grade

DATA = Path(__file__).resolve().parents[1].parent / "shared/data/graded_answers.json"
SAMPLE = Path(__file__).with_name("graded_sample.json")
RESAMPLES = 2000


@dataclass(frozen=True)
class Judged:
    """An answer, and whether the judge called it right."""

    question: str
    gold: str
    answer: str
    right: bool


def judged_answers(path: Path) -> list[Judged]:
    """The answers of a JSON file of `{question, gold, answer, correct}`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Judged(row["question"], row["gold"], row["answer"], row["correct"]) for row in rows]


def development(question: str) -> bool:
    """Whether a question belongs to the half that graders may be developed on; the same for ever."""
    return hashlib.sha256(question.encode()).digest()[0] % 2 == 0


def agreement(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float]:
    """Share of equal verdicts, and Cohen's kappa (1 where both say the same of everything)."""
    count = len(pairs)
    same = sum(one == other for one, other in pairs) / count
    first, second = (sum(pair[side] for pair in pairs) / count for side in (0, 1))
    chance = first * second + (1 - first) * (1 - second)
    return same, (same - chance) / (1 - chance) if chance < 1 else 1.0


def intervals(verdicts: dict[str, list[tuple[bool, bool]]], seed: int) -> tuple[tuple[float, float], ...]:
    """95 % of agreement and of kappa, drawing whole questions with replacement."""
    draw, questions = random.Random(seed), sorted(verdicts)
    found = []
    for _ in range(RESAMPLES):
        taken = [pair for question in draw.choices(questions, k=len(questions)) for pair in verdicts[question]]
        found.append(agreement(taken))
    return tuple(
        (values[int(0.025 * RESAMPLES)], values[int(0.975 * RESAMPLES) - 1])
        for values in (sorted(item[side] for item in found) for side in (0, 1))
    )


def measured(rows: Sequence[Judged], grader: str, seed: int) -> dict[str, float]:
    """Agreement and kappa of one grader; a score from one half on is a yes."""
    verdicts: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for row in rows:
        yes = grade(grader, row.answer, [row.gold], row.question) >= 0.5
        verdicts[row.question].append((yes, row.right))
    same, kappa = agreement([pair for pairs in verdicts.values() for pair in pairs])
    (same_low, same_high), (low, high) = intervals(verdicts, seed)
    return {
        "agreement": round(same, 4),
        "agreement_low": round(same_low, 4),
        "agreement_high": round(same_high, 4),
        "kappa": round(kappa, 4),
        "kappa_low": round(low, 4),
        "kappa_high": round(high, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--quick", action="store_true", help="the committed pairs, all of them")
    parser.add_argument("--development", action="store_true", help="the half that graders are developed on")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    path = SAMPLE if args.quick else args.data
    if not path.exists():
        print(f"skipped: the judged answers are not at {path} (--quick takes the committed pairs)")
        print(json.dumps({"skipped": True}))
        sys.exit(0)
    begun = time.monotonic()
    rows = judged_answers(path)
    if not args.quick:
        rows = [row for row in rows if development(row.question) == args.development]
    questions = len({row.question for row in rows})
    half = "committed pairs" if args.quick else "development half" if args.development else "held-out half"
    print(f"{half}: {len(rows)} answers to {questions} questions, {sum(row.right for row in rows)} judged right")
    print(f"seed {args.seed}\n\n| grader | agreement [95 %] | kappa [95 %] |\n|---|---|---|")
    found = {name: measured(rows, name, args.seed) for name in STRING_GRADERS}
    for name, item in found.items():
        print(
            f"| {name} | {item['agreement']:.3f} [{item['agreement_low']:.3f}, {item['agreement_high']:.3f}] "
            f"| {item['kappa']:.3f} [{item['kappa_low']:.3f}, {item['kappa_high']:.3f}] |"
        )
    print(f"\n{time.monotonic() - begun:.1f} s")
    print(json.dumps({"half": half, "answers": len(rows), "questions": questions, "graders": found}))


if __name__ == "__main__":
    main()

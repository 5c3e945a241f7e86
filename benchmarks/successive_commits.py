"""Edits committed one after the other: after each, every document so far is quizzed again. What is forgotten?

Row i is the student after the i-th commit, column j its score on document j's quiz; row 0 is the untouched student.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import Classroom, Setup, documents, passage_only, quiz_itself
from tutelage.domain.evaluation import EvaluationReport, QuizResult
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit

GRADER = "contains"


def edit_of(room: Classroom, item: TaskWithQuiz, source: str) -> SelfEdit:
    """What is committed: the passage, the quiz itself, or the teacher's edit (the passage if rejected)."""
    if source == "passage":
        return passage_only(item)
    if source == "quiz":
        return quiz_itself(item)
    written = room.write(item, source, 1, room.policies.initial.version, "commit")[0].result
    return written if isinstance(written, SelfEdit) else passage_only(item)


def quizzed(room: Classroom, item: TaskWithQuiz, version: str) -> float:
    return QuizResult.of(room.student.answer(item.quiz.questions, adapter_version=version)).scores[GRADER]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--source", default="quiz", help="passage, quiz, or a format of the teacher")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents = "tiny", 2
    begun = time.monotonic()
    items = documents("heldout", args.documents, args.model)
    room = Classroom(Setup(args.model, "nf4", args.threads, args.seed))
    try:
        matrix = [[quizzed(room, item, "") for item in items]]
        version = ""
        ranks: list[int] = []
        for item in items:
            evaluation_id, outcome = room.evaluate(item, edit_of(room, item, args.source), adapter_version=version)
            if not isinstance(outcome, EvaluationReport):
                raise SystemExit(f"the edit of {item.task.id} was rejected: {outcome}")
            adapter, *_ = room.student.commit(evaluation_id)
            version, ranks = adapter.version, [*ranks, adapter.rank]
            matrix.append([quizzed(room, other, version) for other in items])
            print(f"  commit {len(ranks)} of {len(items)} after {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        room.close()
    print(f"\n`{GRADER}` by document (columns) after each commit (rows); source of edits: {args.source}\n")
    print("| after commit | rank | " + " | ".join(str(j + 1) for j in range(len(items))) + " | mean so far |")
    print("|---" * (len(items) + 3) + "|")
    for i, row in enumerate(matrix):
        so_far = row[: max(i, 1)]
        cells = " | ".join(f"{value:.2f}" for value in row)
        rank = ranks[i - 1] if i else "-"
        print(f"| {i or 'none'} | {rank} | {cells} | {sum(so_far) / len(so_far):.2f} |")
    count = len(items)
    own = sum(matrix[i + 1][i] for i in range(count)) / count
    seconds = time.monotonic() - begun
    print(f"\nright after its own commit {own:.2f}, after all {sum(matrix[-1]) / count:.2f}; {seconds:.0f} s")
    print(
        json.dumps(
            {
                "untouched": sum(matrix[0]) / count,
                "after_own_commit": own,
                "after_all": sum(matrix[-1]) / count,
                "matrix": matrix,
                "documents": count,
                "source": args.source,
                "seed": args.seed,
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()

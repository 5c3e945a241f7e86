"""Does a student learn? Held-out documents: untouched, on the passage, on self-edits before and after one RL round.

Each line is a mean over documents with a 95 % interval (bootstrap over documents); gains are paired with the untouched
student on the same questions. A rejected edit leaves the student as it is and counts as the untouched score.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import EXAMPLES, GRADERS, Classroom, Setup, documents, passage_only, quiz_itself
from orchestrator.report.bootstrap import mean_interval, paired_interval
from teacher.parsing import parse_completion
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateSettings
from tutelage.domain.reward import RewardSettings, reward_of
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import Rejection, SelfEdit

Scores = dict[str, list[float]]


class Table:
    """Rows of scores by grader, each over the same documents, beside the untouched student's."""

    def __init__(self) -> None:
        self.before: Scores = {name: [] for name in GRADERS}
        self.rows: dict[str, Scores] = {}
        self.rejected: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def run(
        self,
        name: str,
        room: Classroom,
        items: Sequence[TaskWithQuiz],
        edit_of: Callable[[TaskWithQuiz], SelfEdit | Rejection],
    ) -> None:
        begun, rejected = time.monotonic(), 0
        scores: Scores = {grader: [] for grader in GRADERS}
        first = name == "passage"

        def outcome_of(item: TaskWithQuiz) -> EvaluationReport | Rejection:
            edit = edit_of(item)
            return room.evaluate(item, edit)[1] if isinstance(edit, SelfEdit) else edit

        for index, outcome in enumerate(room.each(outcome_of, items)):
            for grader in GRADERS:
                if isinstance(outcome, EvaluationReport):
                    scores[grader].append(outcome.after.scores[grader])
                    if first:
                        self.before[grader].append(outcome.before.scores[grader])
                else:
                    # A part of the table without the passage's row is computed for the folder and not shown.
                    scores[grader].append(self.before[grader][index] if self.before[grader] else 0.0)
            rejected += not isinstance(outcome, EvaluationReport)
        self.rows[name], self.rejected[name] = scores, rejected
        self.seconds[name] = time.monotonic() - begun
        mean = sum(scores["contains"]) / len(items)
        print(f"  {name}: contains {mean:.3f}, {len(items)} documents in {self.seconds[name]:.0f} s", flush=True)

    def show(self, seed: int) -> None:
        count = len(self.before[GRADERS[0]])
        print(f"\n| condition ({count} documents) | contains | gain | f1 | log-likelihood | gain | rejected | s |")
        print("|---|---|---|---|---|---|---|---|")
        for name, scores in {"untouched": self.before, **self.rows}.items():
            columns = [name]
            for grader, digits in (("contains", 3), ("f1", 3), ("loglik", 2)):
                level = mean_interval(scores[grader], seed=seed)
                assert level is not None
                columns.append(f"{level.mean:.{digits}f} [{level.low:.{digits}f}, {level.high:.{digits}f}]")
                if grader != "f1":
                    gain = paired_interval(self.before[grader], scores[grader], seed=seed)
                    assert gain is not None
                    columns.append(f"{gain.mean:+.{digits}f} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]")
            columns += [str(self.rejected.get(name, 0)), f"{self.seconds.get(name, 0):.0f}"]
            print(f"| {' | '.join(columns)} |")


def one_round(
    room: Classroom, items: Sequence[TaskWithQuiz], format_name: str, candidates: int
) -> tuple[str, int, int]:
    """Writes, evaluates and updates once; the new policy version, the candidates kept and those scored."""
    first = room.policies.initial.version
    settings = RewardSettings(grader_weights={"contains": 1.0, "loglik": 0.1})

    def group_of(item: TaskWithQuiz) -> CandidateGroup:
        members = []
        for candidate in room.write(item, format_name, candidates, first, "round 1"):
            outcome = room.evaluate(item, candidate.result)[1] if isinstance(candidate.result, SelfEdit) else None
            reward = reward_of(outcome, settings).value if isinstance(outcome, EvaluationReport) else None
            members.append(ScoredCandidate(f"{item.task.id}/{candidate.index}", candidate.rollout, reward))
        return CandidateGroup(item.task.id, tuple(members))

    groups = room.each(group_of, items)
    scored = sum(member.reward is not None for group in groups for member in group.candidates)
    result = room.update(groups, UpdateSettings(rank=32, alpha=64), first)
    return result.policy.version, result.kept_candidates, scored


PARTS = {"given": ("passage", "implications", "rewrite", "ceiling"), "learned": ("same format", "trained", "notes")}
"""Conditions that two processes can compute side by side."""


def written_by(room: Classroom, format_name: str, policy: str) -> Callable[[TaskWithQuiz], SelfEdit | Rejection]:
    """One self-edit a document, by this policy."""
    return lambda item: room.write(item, format_name, 1, policy, f"held-out {format_name}")[0].result


def notes_of_a_large_model(room: Classroom) -> Callable[[TaskWithQuiz], SelfEdit | Rejection]:
    """Good notes, written from the passages alone: they tell a weak inner loop from a weak teacher."""
    lines = (EXAMPLES.parent / "self_edits" / "heldout_self_qa.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {item["task_id"]: item["text"] for item in map(json.loads, lines)}
    return lambda item: parse_completion(texts[item.task.id], room.formats["self-qa"], item.task).result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=56, help="held-out documents")
    parser.add_argument("--train-documents", type=int, default=16, help="documents of the RL round")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--format", default="self-qa", help="format of the RL round")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    parser.add_argument("--slots", type=int, default=12, help="evaluations trained side by side in a process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps reports here; the same command goes on from them")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents, args.train_documents, args.candidates = "tiny", 2, 1, 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as temporary:
        folder = args.folder or Path(temporary)
        if args.part is None and args.processes == 2:
            _compute_in_two(folder)
        show(args, folder, begun)


def _compute_in_two(folder: Path) -> None:
    """Both parts at once, each in a process; what they find lies in the folder."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)]
    parts = [subprocess.Popen([*command, "--part", part]) for part in PARTS]
    try:
        codes = [part.wait() for part in parts]
        if any(codes):
            raise SystemExit("a part of the benchmark failed")
    finally:
        for part in parts:
            part.kill()


def show(args: argparse.Namespace, folder: Path, begun: float) -> None:
    """Computes what is not in the folder yet, and prints the table of it all."""
    held_out = documents("heldout", args.documents, args.model)
    train = documents("train", args.train_documents, args.model)
    setup = Setup(args.model, "nf4", args.threads, args.seed, args.slots)
    room = Classroom(setup, folder=folder, own=list(PARTS).index(args.part) if args.part else len(PARTS))
    if args.part is None:
        print(f"{setup}, {platform.machine()}, {len(held_out)} held-out documents", flush=True)
    wanted = PARTS.get(args.part, (*PARTS["given"], *PARTS["learned"]))
    kept = scored = 0
    try:
        first, table = room.policies.initial.version, Table()
        trained = f"{args.format}, after one round"
        for name in wanted:
            if name == "passage":
                table.run(name, room, held_out, passage_only)
            elif name == "notes":
                table.run("self-qa by a large model", room, held_out, notes_of_a_large_model(room))
            elif name == "ceiling":
                table.run("quiz itself (ceiling)", room, held_out, quiz_itself)
            elif name == "trained":
                version, kept, scored = one_round(room, train, args.format, args.candidates)
                print(f"  one round: {scored} scored candidates of {len(train)} documents, {kept} kept", flush=True)
                table.run(trained, room, held_out, written_by(room, args.format, version))
            else:
                format_name = args.format if name == "same format" else name
                table.run(f"{format_name}, untrained teacher", room, held_out, written_by(room, format_name, first))
        if args.part is not None:
            return
        table.show(args.seed)
    finally:
        room.close()
    untrained = table.rows[f"{args.format}, untrained teacher"]["contains"]
    difference = paired_interval(untrained, table.rows[trained]["contains"], seed=args.seed)
    assert difference is not None
    seconds = time.monotonic() - begun
    print(
        f"\ntrained minus untrained teacher ({args.format}): {difference.mean:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}]; {seconds:.0f} s, seed {args.seed}"
    )
    means = {name: sum(scores["contains"]) / len(scores["contains"]) for name, scores in table.rows.items()}
    untouched = sum(table.before["contains"]) / len(table.before["contains"])
    print(
        json.dumps(
            {
                "contains": {"untouched": untouched, **means},
                "difference": difference.mean,
                "low": difference.low,
                "high": difference.high,
                "documents": len(held_out),
                "train_documents": len(train),
                "kept": kept,
                "rejected": table.rejected,
                "seed": args.seed,
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()

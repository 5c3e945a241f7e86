"""How far does an evaluation differ when others are trained beside it, and what does `deterministic: true` cost?

Matrix products round by the shape of their batch, so an edit trained beside others is not the same edit to the last
bit. Some edits (questions of a document with their answers, so that something is learned and answers can differ) are
asked of real student engines: alone, of a deterministic student; beside the others, of a bank; and of a deterministic
student all at once, backwards, after a stranger that has made a baseline known. The last must give the first's bits.
Bank and deterministic student take turns, and are timed. In float32 only alone and beside.

    python benchmarks/repeatability.py            # SmolLM2-135M, NF4: some minutes a dtype on two cores
    python benchmarks/repeatability.py --quick    # a tiny random model

Ends with 1 when the deterministic student did not repeat itself. The last line is JSON: bfloat16 and float32 (each with
loss_mean, loss_max, final_loss_max, answers_differ, contains, f1, loglik, reward, reward_max, identical), repeated,
bank_per_hour, deterministic_per_hour, cost, cpu_cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from prometheus_client import CollectorRegistry

from student.config import StudentSettings
from student.engine import StudentEngine
from student.metrics import StudentMetrics
from tutelage.documents import read_tasks
from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, InnerLoopSettings
from tutelage.domain.reward import RewardSettings, reward_of
from tutelage.domain.self_edit import SelfEdit, question_answer
from tutelage.domain.task import Quiz
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model

DOCUMENTS = Path(__file__).resolve().parents[1] / "examples" / "documents" / "heldout.jsonl"
SCORES = ("contains", "f1", "loglik")


@dataclass(frozen=True)
class Workload:
    """Edits with the quizzes they are graded on."""

    edits: tuple[SelfEdit, ...]
    quizzes: tuple[Quiz, ...]
    loop: InnerLoopSettings

    def keys(self, engine: StudentEngine, seed: int) -> list[EvaluationKey]:
        own = engine.describe()
        return [
            EvaluationKey(
                own.base_model, own.base_revision, own.quantisation, "", edit, quiz, Quiz(), SCORES, self.loop,
                own.engine_revision, 1000 * seed + i,
            )
            for i, (edit, quiz) in enumerate(zip(self.edits, self.quizzes, strict=True))
        ]  # fmt: skip


def workload(edits: int, rows: int, epochs: int) -> Workload:
    quizzes = [Quiz(item.quiz.questions[:rows]) for item in read_tasks(DOCUMENTS, edits)]
    made = [SelfEdit(tuple(question_answer(q.text, q.answer) for q in quiz.questions)) for quiz in quizzes]
    return Workload(tuple(made), tuple(quizzes), InnerLoopSettings(rank=16, alpha=32, epochs=epochs, batch_size=1))


@dataclass(frozen=True)
class Seen:
    """What came of one evaluation: the loss of each step and the report, less its clock and its id."""

    losses: tuple[float, ...]
    report: EvaluationReport


class Watched:
    """An evaluation under way whose losses are collected."""

    def __init__(self, engine: StudentEngine, key: EvaluationKey) -> None:
        self._losses: list[float] = []
        self._job = engine.evaluate(key, lease_s=86400, watcher=self._see)

    def _see(self, event: EvaluationProgress | EvaluationOutcome) -> None:
        if isinstance(event, EvaluationProgress) and event.phase is EvaluationPhase.TRAINING and event.steps_done:
            self._losses.append(event.loss)

    def wait(self) -> Seen:
        self._job.done.wait()
        report = self._job.outcome
        if not isinstance(report, EvaluationReport):
            raise SystemExit(f"an evaluation ended without a report: {report}")
        cost = replace(report.cost, train_seconds=0, quiz_seconds=0, baseline_cached=False)
        return Seen(tuple(self._losses), replace(report, cost=cost, finished_at=report.finished_at.min))


Ask = Callable[[StudentEngine, Sequence[EvaluationKey]], list[Seen]]


@contextmanager
def student(loaded: LoadedModel, *, slots: int | None = None, max_new_tokens: int) -> Iterator[StudentEngine]:
    """A student with a fresh folder; without `slots` a deterministic one."""
    with tempfile.TemporaryDirectory(prefix="tutelage-repeatability-") as folder:
        settings = StudentSettings(
            model=loaded.name,
            data_dir=Path(folder),
            slots=slots,
            deterministic=slots is None,
            max_new_tokens=max_new_tokens,
        )
        # What a deterministic student's process has in force.
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
        engine = StudentEngine(loaded, settings, StudentMetrics(CollectorRegistry()))
        try:
            yield engine
        finally:
            engine.close()


def one_by_one(engine: StudentEngine, keys: Sequence[EvaluationKey]) -> list[Seen]:
    return [Watched(engine, key).wait() for key in keys]


def all_at_once(engine: StudentEngine, keys: Sequence[EvaluationKey]) -> list[Seen]:
    return [watched.wait() for watched in [Watched(engine, key) for key in keys]]


def crowded(engine: StudentEngine, keys: Sequence[EvaluationKey]) -> list[Seen]:
    """All at once and backwards, after a stranger with the first one's quiz, so that its baseline is known."""
    stranger = replace(keys[0], seed=keys[0].seed + 1, self_edit=keys[-1].self_edit)
    return all_at_once(engine, [stranger, *reversed(keys)])[:0:-1]


@dataclass(frozen=True)
class Difference:
    """Between the same evaluations done in two ways; losses relative, scores and rewards absolute."""

    loss_mean: float
    loss_max: float
    final_loss_max: float
    answers_differ: float
    """Share of the answers after training whose text differs."""
    contains: float
    """Mean over the edits, as are f1, loglik and reward."""
    f1: float
    loglik: float
    reward: float
    reward_max: float
    identical: int
    """Edits whose losses and reports are the same to the last bit."""

    def line(self, name: str) -> str:
        return (
            f"| {name} | {self.loss_mean:.2%} | {self.loss_max:.2%} | {self.final_loss_max:.2%} "
            f"| {self.answers_differ:.1%} | {self.contains:.3f} | {self.f1:.3f} | {self.loglik:.4f} "
            f"| {self.reward:.4f} | {self.reward_max:.4f} | {self.identical} |"
        )

    def figures(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in vars(self).items()}


HEAD = (
    "| compared with alone | losses, mean | losses, max | final loss, max | answers that differ | contains | f1 "
    "| log-likelihood | reward | reward, max | bit for bit |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def difference(ones: Sequence[Seen], others: Sequence[Seen]) -> Difference:
    pairs = list(zip(ones, others, strict=True))
    losses = [abs(a - b) / a for one, other in pairs for a, b in zip(one.losses, other.losses, strict=True)]
    answers = [
        a.text != b.text
        for one, other in pairs
        for a, b in zip(one.report.after.answers, other.report.after.answers, strict=True)
    ]
    rewards = [abs(reward(one) - reward(other)) for one, other in pairs]

    def score(name: str) -> float:
        return statistics.mean(abs(a.report.after.scores[name] - b.report.after.scores[name]) for a, b in pairs)

    return Difference(
        loss_mean=statistics.mean(losses),
        loss_max=max(losses),
        final_loss_max=max(abs(a.losses[-1] - b.losses[-1]) / a.losses[-1] for a, b in pairs),
        answers_differ=statistics.mean(answers),
        contains=score("contains"),
        f1=score("f1"),
        loglik=score("loglik"),
        reward=statistics.mean(rewards),
        reward_max=max(rewards),
        identical=sum(timeless(a) == timeless(b) for a, b in pairs),
    )


def timeless(seen: Seen) -> Seen:
    """Without the id and revision, in which a deterministic student's key differs from a bank's."""
    return replace(seen, report=replace(seen.report, evaluation_id=""))


def reward(seen: Seen) -> float:
    return reward_of(seen.report, RewardSettings()).value


@dataclass
class Rates:
    """Evaluations an hour of one way, over its turns."""

    per_hour: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of one evaluation; other work on the machine lengthens an hour's, hardly these."""

    def timed(self, work: Ask, engine: StudentEngine, keys: Sequence[EvaluationKey], evaluations: int) -> list[Seen]:
        begun, cpu = time.monotonic(), time.process_time()
        seen = work(engine, keys)
        seconds = time.monotonic() - begun
        self.per_hour.append(3600 * evaluations / seconds)
        self.cpu_seconds.append((time.process_time() - cpu) / evaluations)
        print(f"{evaluations} evaluations in {seconds:.1f} s", file=sys.stderr, flush=True)
        return seen

    def line(self, name: str) -> str:
        low, high = min(self.per_hour), max(self.per_hour)
        cpu = ", ".join(f"{each:.1f}" for each in self.cpu_seconds)
        return f"| {name} | {statistics.mean(self.per_hour):.0f} | {low:.0f} to {high:.0f} | {cpu} |"


def measure_bfloat16(args: argparse.Namespace, loaded: LoadedModel, load: Workload) -> dict[str, Any]:
    """Differences and speed from the same turns: alone, beside, crowded, beside."""
    limit, edits = args.max_new_tokens, args.edits
    bank, single = Rates(), Rates()
    with student(loaded, max_new_tokens=limit) as engine:
        alone = single.timed(one_by_one, engine, load.keys(engine, args.seed), edits)
    print(HEAD)
    for turn in (1, 2):
        if turn == 2:
            with student(loaded, max_new_tokens=limit) as engine:
                # One more for the stranger.
                again = difference(alone, single.timed(crowded, engine, load.keys(engine, args.seed), edits + 1))
            print(again.line("bfloat16, deterministic, in a crowd"), flush=True)
        with student(loaded, slots=args.slots, max_new_tokens=limit) as engine:
            beside = difference(alone, bank.timed(all_at_once, engine, load.keys(engine, args.seed), edits))
        print(beside.line(f"bfloat16, beside {args.slots - 1} others"), flush=True)
    rewards = [reward(seen) for seen in alone]
    after = [f"{name} {statistics.mean(seen.report.after.scores[name] for seen in alone):.3f}" for name in SCORES]
    spread = statistics.stdev(rewards)
    print(
        f"\nalone, after training: {', '.join(after)}; rewards of the edits differ by {spread:.3f} (standard deviation)"
    )
    print(f"\n| {args.threads} threads | evaluations an hour | spread | CPU seconds an evaluation |\n|---|---|---|---|")
    print(bank.line(f"bank, {args.slots} slots"))
    print(single.line("deterministic"))
    bank_per_hour, single_per_hour = statistics.mean(bank.per_hour), statistics.mean(single.per_hour)
    return {
        "bfloat16": beside.figures(),
        "repeated": again.identical == edits,
        "reward_spread": round(spread, 4),
        "bank_per_hour": round(bank_per_hour, 1),
        "deterministic_per_hour": round(single_per_hour, 1),
        "cost": round(bank_per_hour / single_per_hour, 3),
        "cpu_cost": round(statistics.mean(single.cpu_seconds) / statistics.mean(bank.cpu_seconds), 3),
    }


def measure_float32(args: argparse.Namespace, loaded: LoadedModel, load: Workload) -> dict[str, Any]:
    with student(loaded, max_new_tokens=args.max_new_tokens) as engine:
        alone = one_by_one(engine, load.keys(engine, args.seed))
    with student(loaded, slots=args.slots, max_new_tokens=args.max_new_tokens) as engine:
        beside = difference(alone, all_at_once(engine, load.keys(engine, args.seed)))
    print(f"\n{HEAD}\n" + beside.line(f"float32, beside {args.slots - 1} others"))
    return {"float32": beside.figures()}


MEASURES = {"bfloat16": measure_bfloat16, "float32": measure_float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(MEASURES), default=list(MEASURES))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--edits", type=int, default=8)
    parser.add_argument("--rows", type=int, default=4, help="of an edit, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.edits, args.rows, args.epochs, args.slots, args.threads, args.max_new_tokens = 5, 3, 2, 5, 1, 4
    begun = time.monotonic()
    load = workload(args.edits, args.rows, args.epochs)
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_tiny_model(Path(folder) / "tiny", hidden=64, context=1024)) if args.quick else args.model
        rows = statistics.mean(len(edit.documents) for edit in load.edits)
        print(f"{args.model if not args.quick else 'tiny'}, NF4, {platform.machine()}, {args.threads} threads")
        print(f"seed {args.seed}, {args.edits} edits of {rows:.1f} rows, {args.epochs} epochs, batch 1, rank 16\n")
        found: dict[str, Any] = {}
        for dtype in args.dtypes:
            # Held as the service holds it unless told otherwise.
            loaded = load_model(model, device="cpu", compute_dtype=dtype, threads=args.threads, dequantise="auto")
            found |= MEASURES[dtype](args, loaded, load)
    print(f"whole run {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(json.dumps({**found, "seed": args.seed}))
    if not found.get("repeated", True):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

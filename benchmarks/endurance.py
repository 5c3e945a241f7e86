"""Does a student hold its memory? Thousands of evaluations in one process of the real service, over gRPC.

A tiny random model serves: what could leak is everything around the model. Sixteen clients ask for edits of different
sizes, ranks, epochs and targets; some are rejected, some diverge, some are cancelled or given up by their clients, some
are asked for several times, and some are committed, built upon and deleted. After each hundred, when all have ended and
all clients have left, the process is looked at from outside: resident memory after a garbage collection, open file
descriptors, threads, and the files in its folders.

    python benchmarks/endurance.py            # 2,000 evaluations, some minutes
    python benchmarks/endurance.py --quick    # too few to tell growth from warming up; the rest is held to

Weights are held for seconds here, so that those held for Commit do not count. Ends with 1 when resident memory has
grown by 2 % or more since the first 200, or a file, an adapter or a file descriptor is left behind. The last line is
JSON: evaluations, rss_after_200_mib, rss_end_mib, growth, files_left, fds_left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# This file's folder would make `orchestrator` mean the benchmark of that name.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from tutelage.client import SyncStudentClient
from tutelage.domain.description import EvaluationProgress, EvaluationState, StudentDescription
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.self_edit import Directives, Rejection, RejectionReason, SelfEdit, TextDocument, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.tiny import write_tiny_model
from tutelage.rpc.config import ChannelSettings

CLIENTS = 16
HOLD_S = 15.0
WARM = 200
GROWTH = 0.02
PROGRAM = """
import gc, json, signal, sys
from student.config import StudentSettings
from student.main import run
# Garbage whose turn has not come yet is no leak.
signal.signal(signal.SIGUSR1, lambda *_: gc.collect())
run(StudentSettings(**json.loads(sys.argv[1])))
"""
WORDS = ("heron", "key", "seal", "salt", "trader", "lamp", "bridge", "town", "winter", "harbour", "bell", "copper")
KINDS = {
    "report": 80,
    "out of bounds": 3,
    "too large": 2,
    "empty": 1,
    "diverged": 2,
    "cancelled": 5,
    "given up": 2,
    "asked twice": 3,
    "committed": 2,
}
"""What is asked for, in shares of a hundred."""


class Broken(Exception):
    """The student did what it must not."""


@dataclass(frozen=True)
class Served:
    """A student process that listens."""

    pid: int
    address: str
    metrics_address: str
    data: Path
    scratch: Path

    def client(self) -> SyncStudentClient:
        return SyncStudentClient(ChannelSettings(address=self.address))

    def ended(self) -> dict[str, int]:
        """Evaluations it has ended, by outcome, as it counts them itself."""
        page = urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=30).read().decode()
        start = 'tutelage_student_evaluations_total{outcome="'
        lines = [line.removeprefix(start) for line in page.splitlines() if line.startswith(start)]
        return {line.split('"')[0]: int(float(line.split()[-1])) for line in lines}


@contextmanager
def student_process(folder: Path, slots: int, threads: int) -> Iterator[Served]:
    """A student service on a tiny model, ended by SIGTERM."""
    ready, scratch = folder / "ready.json", folder / "scratch"
    scratch.mkdir()
    settings = {
        "model": str(write_tiny_model(folder / "tiny")),
        "device": "cpu",
        "threads": threads,
        "slots": slots,
        "data_dir": str(folder / "data"),
        "hold_s": HOLD_S,
        "max_new_tokens": 6,
        "bounds": {"max_learning_rate": 1e38},
        "server": {"metrics_port": 0, "ready_file": str(ready), "grace_s": 5, "log_level": "WARNING"},
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},  # What it writes beside its folder is seen as well.
    )
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise Broken(f"the student ended with {process.returncode} before it served")
            time.sleep(0.1)
        found = json.loads(ready.read_text())
        yield Served(process.pid, found["address"], found["metrics_address"], folder / "data", scratch)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


@dataclass(frozen=True)
class Sample:
    """The process as seen from outside while nobody asks anything of it."""

    evaluations: int
    seconds: float
    rss_mib: float
    threads: int
    descriptors: int
    held: int
    """Files of held weights."""
    adapters: int
    """Files of adapter versions."""
    others: int
    """Files that are neither, nor the database; scratch files among them."""

    def line(self) -> str:
        return (
            f"| {self.evaluations} | {self.seconds:.0f} | {self.rss_mib:.1f} | {self.threads} | {self.descriptors} "
            f"| {self.held} | {self.adapters} | {self.others} |"
        )


def sample(served: Served, begun: float) -> Sample:
    os.kill(served.pid, signal.SIGUSR1)
    descriptors = []
    for _ in range(10):
        # The last connections may be closing still.
        time.sleep(0.2)
        descriptors.append(len(os.listdir(f"/proc/{served.pid}/fd")))
    status = dict(line.split(":", 1) for line in Path(f"/proc/{served.pid}/status").read_text().splitlines())
    files = [path for path in served.data.rglob("*") if path.is_file() and not path.name.startswith("evaluations.sql")]
    held = sum(path.parent.name == "held" for path in files)
    adapters = sum((served.data / "adapters") in path.parents for path in files)
    scratch = sum(path.is_file() for path in served.scratch.rglob("*"))
    return Sample(
        evaluations=sum(served.ended().values()),
        seconds=time.monotonic() - begun,
        rss_mib=int(status["VmRSS"].split()[0]) / 1024,
        threads=int(status["Threads"]),
        descriptors=min(descriptors),
        held=held,
        adapters=adapters,
        others=len(files) - held - adapters + scratch,
    )


def make_key(own: StudentDescription, kind: str, number: int, seed: int) -> EvaluationKey:
    """The key of the `number`-th evaluation; no two are the same."""
    draw = random.Random(f"{seed} {number}")

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    documents = [question_answer(f"What is {words(1, 6)}?", words(1, 12)) for _ in range(draw.randint(1, 5))]
    directives = Directives(epochs=draw.randint(1, 3), rank=draw.choice((2, 4, 8, 16)))
    target_modules = draw.choice(((), (), ("q_proj", "v_proj"), ("down_proj",)))
    settings = InnerLoopSettings(8, 16.0, target_modules, epochs=2, batch_size=draw.randint(1, 2))
    if kind == "out of bounds":
        directives = replace(directives, rank=4096)
    elif kind == "empty":
        documents = []
    elif kind == "diverged":
        directives = replace(directives, epochs=30)
        # On all projections: a single one is tamed by the norm after it.
        settings = replace(settings, target_modules=(), learning_rate=1e37, max_grad_norm=0.0)
    elif kind in ("cancelled", "given up"):
        # Long enough to be there still when it is told to stop.
        directives, settings = replace(directives, epochs=30), replace(settings, batch_size=1)
        documents = [question_answer(f"What is {words(3, 6)}?", words(8, 12)) for _ in range(20)]
    large = [TextDocument("a heron " * 200)] if kind == "too large" else []
    quiz = Quiz(tuple(Question(f"q{i}", f"Which {words(1, 4)}?", words(1, 2)) for i in range(draw.randint(1, 3))))
    return EvaluationKey(
        own.base_model, own.base_revision, own.quantisation, "", SelfEdit((*documents, *large), directives),
        quiz, Quiz(), ("contains", "loglik"), settings, own.engine_revision, number,
    )  # fmt: skip


def outcome_of(client: SyncStudentClient, key: EvaluationKey) -> EvaluationOutcome:
    *_, outcome = client.evaluate(key)
    if isinstance(outcome, EvaluationProgress):
        raise Broken("a stream ended without an outcome")
    return outcome


def expect(held: bool, kind: str, outcome: object) -> None:
    if not held:
        raise Broken(f"{kind}: {outcome}")


def ask(client: SyncStudentClient, kind: str, key: EvaluationKey) -> None:
    """One evaluation from beginning to end; raises Broken when it ends otherwise than it must."""
    if kind == "cancelled":
        stream = client.evaluate(key)
        next(stream)
        client.cancel_evaluation(key.id)
        *_, stopped = stream
        expect(isinstance(stopped, Failure) and not stopped.retryable, kind, stopped)
        return
    if kind == "given up":
        stream = client.evaluate(key, lease_s=0.2)
        next(stream)
        stream.close()
        while (status := client.get_evaluation(key.id)).state is not EvaluationState.DONE:
            time.sleep(0.1)
        expect(isinstance(status.outcome, Failure), kind, status.outcome)
        return
    if kind == "asked twice":
        with ThreadPoolExecutor(3) as pool:
            outcomes = list(pool.map(lambda _: outcome_of(client, key), range(3)))
        outcomes.append(outcome_of(client, key))
        expect(isinstance(outcomes[0], EvaluationReport), kind, outcomes[0])
        expect(all(each == outcomes[0] for each in outcomes), kind, "another report of the same key")
        return
    outcome = outcome_of(client, key)
    if kind == "committed":
        expect(isinstance(outcome, EvaluationReport), kind, outcome)
        version = client.commit(key.id)[0].version
        client.answer([Question("a", "Which?", "heron")], adapter_version=version)
        over = outcome_of(client, replace(key, adapter_version=version))
        expect(isinstance(over, EvaluationReport), kind, over)
        client.delete_adapter(version)
        return
    if kind == "report":
        expect(isinstance(outcome, EvaluationReport), kind, outcome)
        return
    reason = RejectionReason[kind.upper().replace(" ", "_")]
    expect(isinstance(outcome, Rejection) and outcome.reason is reason, kind, outcome)


def ask_all(served: Served, keys: list[tuple[str, EvaluationKey]]) -> None:
    """Through clients of their own, which leave again."""
    clients = [served.client() for _ in range(CLIENTS)]
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(ask, clients[i % CLIENTS], *each) for i, each in enumerate(keys)]
            for future in asking:
                future.result()
    finally:
        for client in clients:
            client.close()


def let_go_of_held(served: Served, own: StudentDescription) -> None:
    """Has the student drop the weights it held for Commit, which it does when the next evaluation ends."""
    time.sleep(HOLD_S)
    # A file younger than a minute might be one that is being written; this stands in for a minute's wait.
    for path in (served.data / "held").iterdir():
        os.utime(path, (time.time() - 120,) * 2)
    with served.client() as client:
        ask(client, "empty", make_key(own, "empty", 2**32, 0))


def run(served: Served, args: argparse.Namespace) -> list[Sample]:
    """A sample after each hundred evaluations, and one at the end."""
    begun = time.monotonic()
    with served.client() as client:
        own = client.describe()
    print(f"{own.base_model}, {own.quantisation}, {own.compute_dtype}, {own.slots} slots, seed {args.seed}\n")
    print("| evaluations | s | resident MiB | threads | descriptors | held | adapter files | other files |")
    print("|---|---|---|---|---|---|---|---|")
    kinds = random.Random(args.seed).choices(list(KINDS), list(KINDS.values()), k=args.evaluations)
    keys = [(kind, make_key(own, kind, i, args.seed)) for i, kind in enumerate(kinds)]
    samples = [sample(served, begun)]
    print(samples[-1].line(), flush=True)
    for start in range(0, len(keys), args.every):
        ask_all(served, keys[start : start + args.every])
        samples.append(sample(served, begun))
        print(samples[-1].line(), flush=True)
    let_go_of_held(served, own)
    samples.append(sample(served, begun))
    print(samples[-1].line())
    outcomes = ", ".join(f"{number} {name}" for name, number in served.ended().items())
    print(f"\n{outcomes}; asked: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS))
    return samples


def verdict(samples: list[Sample], warm: int) -> dict[str, Any]:
    warmed = next(each for each in samples if each.evaluations >= warm)
    end = samples[-1]
    return {
        "evaluations": end.evaluations,
        "rss_after_200_mib": round(warmed.rss_mib, 1),
        "rss_end_mib": round(end.rss_mib, 1),
        "growth": round(end.rss_mib / warmed.rss_mib - 1, 4),
        "files_left": end.held + end.adapters + end.others,
        "fds_left": end.descriptors - warmed.descriptors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 evaluations; growth is not judged")
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="evaluations between two looks at the process")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="of the student; with two and more passes run at once")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warm = 20 if args.quick else WARM
    if args.quick:
        args.evaluations, args.every = 60, 20
    with (
        tempfile.TemporaryDirectory(prefix="tutelage-endurance-") as folder,
        student_process(Path(folder), args.slots, args.threads) as served,
    ):
        found = verdict(run(served, args), warm)
    if args.quick:
        print("too few evaluations to judge growth")
    print(json.dumps({**found, "threads": args.threads}))
    grown = not args.quick and found["growth"] >= GROWTH
    if grown or found["files_left"] or found["fds_left"] > 0:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

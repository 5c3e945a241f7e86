"""What an orchestrator costs by itself: processor time and memory for an evaluation, and how busy it keeps students.

Simulated students of one slot answer over real gRPC from other processes, after a fixed time and with invented scores.
Each size runs in a process of its own, whose processor time and peak memory are the orchestrator's. The students' share
of busy time is counted by themselves, from the first evaluation's start to the last one's end.

    python benchmarks/orchestrator.py            # 1 to 1,000 students; 100,000 evaluations of 10 s in the largest
    python benchmarks/orchestrator.py --quick    # less than a minute
    python benchmarks/orchestrator.py --database postgresql://user@host/name

The last line is JSON: cpu_ms_per_evaluation, peak_mib, students and evaluations of the largest size, busy_share_64,
and marginal_cpu_ms: what an evaluation costs without a run's start, from the difference of largest and smallest size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# This file's folder would make `orchestrator` mean this file.
ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT, *(each for each in sys.path if Path(each or ".").resolve() != Path(__file__).resolve().parent)]

from benchmarks.simulated_services import Simulation
from orchestrator.config import OrchestratorSettings, StudentChannel
from orchestrator.engine import Engine
from tutelage.domain.run import RunState, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.config import ChannelSettings


@dataclass(frozen=True)
class Size:
    students: int
    tasks: int
    candidates: int
    seconds: float
    """Of an evaluation."""

    @property
    def evaluations(self) -> int:
        return self.students * self.tasks * self.candidates


FULL = (Size(1, 4, 5, 1.0), Size(8, 5, 8, 1.0), Size(64, 7, 9, 2.0), Size(250, 10, 10, 5.0), Size(1000, 10, 10, 10.0))
QUICK = (Size(1, 2, 5, 0.2), Size(8, 4, 5, 0.4), Size(64, 4, 5, 1.0))


async def _measure(size: Size, simulation: Simulation, database: str) -> dict[str, Any]:
    settings = OrchestratorSettings(
        database_url=database,
        teacher=ChannelSettings(address=simulation.teacher),
        students={
            f"s{number:04d}": StudentChannel(address=address) for number, address in enumerate(simulation.students)
        },
    )
    tasks = tuple(
        TaskWithQuiz(
            Task(f"t{number}", DocumentTask(f"Title {number}", "A passage of some length. " * 30)),
            Quiz(tuple(Question(f"q{each}", "What is it?", "an answer") for each in range(5))),
        )
        for number in range(size.tasks)
    )
    config = (
        f"students: [{', '.join(settings.students)}]\ncandidates: {size.candidates}\nrounds: 1\n"
        "commit: {when: never}\nreward: {grader_weights: {contains: 1.0}}\n"
    )
    engine = Engine(settings)
    await engine.start()
    run_id = f"benchmark-{os.getpid()}"
    began, cpu = time.monotonic(), time.process_time()
    await engine.start_run(run_id, config, tasks, Quiz())
    async for _ in engine.watch(run_id, 2**62):
        pass
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    summary = await engine.summary(run_id)
    given = await engine.store.reward_rows(run_id)
    await engine.stop()
    if summary.state is not RunState.DONE or len(set(given)) != size.evaluations or summary.unscored:
        raise SystemExit(f"the run is {summary.state.value} with {len(given)} rewards: {summary.message}")
    return {"cpu_ms": cpu * 1000 / size.evaluations, "wall_s": seconds, "own_busy": summary.students[0].busy}


def _one(size: Size, database: str) -> dict[str, Any]:
    simulation = Simulation(size.students, size.seconds, processes=1 if size.students <= 64 else 2)
    with tempfile.TemporaryDirectory() as folder:
        url = database or f"sqlite:///{folder}/orchestrator.sqlite"
        if os.environ.get("PROFILE"):
            import cProfile

            profile = cProfile.Profile()
            measured = profile.runcall(asyncio.run, _measure(size, simulation, url))
            profile.dump_stats(os.environ["PROFILE"])
        else:
            measured = asyncio.run(_measure(size, simulation, url))
    tallies = [each for each in simulation.stop() if each.evaluations]
    span_s = max(each.last_end for each in tallies) - min(each.first_start for each in tallies)
    if any(each.doubled or each.overfull for each in tallies):
        raise SystemExit(f"evaluations were done twice or beyond the slots: {tallies}")
    return measured | {
        "busy": size.evaluations * size.seconds / (size.students * span_s),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, less than a minute")
    parser.add_argument("--database", default="", help="URL of the database; a fresh SQLite file if not given")
    parser.add_argument("--size", help="one size: students,tasks,candidates,seconds")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_one(Size(**json.loads(options.one)), options.database)))
        return
    sizes: tuple[Size, ...] = QUICK if options.quick else FULL
    if options.size:
        students, tasks, candidates, seconds = options.size.split(",")
        sizes = (Size(int(students), int(tasks), int(candidates), float(seconds)),)
    print("students  evaluations  each (s)  wall (s)  busy   CPU ms/evaluation  peak MiB", flush=True)
    busy_64, measured = None, {}
    spent: list[tuple[int, float]] = []
    for size in sizes:
        command = [sys.executable, __file__, "--one", json.dumps(asdict(size)), "--database", options.database]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{size} failed")
        measured = json.loads(done.stdout.splitlines()[-1])
        spent.append((size.evaluations, measured["cpu_ms"] * size.evaluations))
        busy_64 = measured["busy"] if size.students == 64 else busy_64
        print(
            f"{size.students:8}  {size.evaluations:11}  {size.seconds:8g}  {measured['wall_s']:8.1f}"
            f"  {measured['busy']:5.3f}  {measured['cpu_ms']:17.2f}  {measured['peak_mib']:8.0f}",
            flush=True,
        )
    (fewest, least_ms), (most, most_ms) = spent[0], spent[-1]
    print(
        json.dumps(
            {
                "cpu_ms_per_evaluation": round(measured["cpu_ms"], 3),
                "marginal_cpu_ms": round((most_ms - least_ms) / (most - fewest), 3) if most > fewest else None,
                "busy_share_64": None if busy_64 is None else round(busy_64, 4),
                "peak_mib": round(measured["peak_mib"], 1),
                "students": sizes[-1].students,
                "evaluations": sizes[-1].evaluations,
            }
        )
    )


if __name__ == "__main__":
    main()

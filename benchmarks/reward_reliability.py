"""How much of a reward is signal? Intraclass correlation within documents of accuracy, log-likelihood and their blend.

Untrained self-edits are written for some documents and each is trained on under three seeds; what repeats of one edit
have in common, beside what edits of one document differ by, is the reliability of the mean over seeds (one-way analysis
of variance). Intervals: 95 %, bootstrap over documents. Beside them the published rewards, where they are at hand.
Candidates and first seeds are those of teacher_rl.py: in its folder they are not written and evaluated again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from tutelage.domain.evaluation import EvaluationOutcome, EvaluationReport
from tutelage.domain.policy import Sampling
from tutelage.domain.reliability import reliability
from tutelage.domain.reward import RewardSettings, reward_of
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit

PUBLISHED = Path(__file__).resolve().parents[1].parent / "shared/data/published_rewards_round1.json"
RESAMPLES = 1000
REWARDS = {
    "accuracy (contains)": RewardSettings({"contains": 1.0}),
    "f1": RewardSettings({"f1": 1.0}),
    "log-likelihood": RewardSettings({"loglik": 1.0}),
    "blend (default)": RewardSettings(),
}
Groups = Sequence[Sequence[Sequence[float]]]
"""Rewards by document, candidate and seed."""


def measured(groups: Groups, seed: int) -> dict[str, float]:
    """Reliability of one seed and of the mean over all, with the interval of the latter."""
    whole = reliability(groups)
    if whole is None:
        raise SystemExit("no document has two candidates that were evaluated twice: nothing to compare")
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        taken = reliability([groups[place] for place in draw.integers(0, len(groups), len(groups))])
        found.append(taken.mean if taken is not None else 0.0)
    low, high = np.quantile(found, (0.025, 0.975))
    return {"one_seed": whole.single, "mean": whole.mean, "low": max(float(low), -9.0), "high": float(high)}


def table(named: Mapping[str, Groups], seed: int) -> dict[str, dict[str, float]]:
    """Prints a row a reward."""
    print("| reward | one seed | mean over seeds [95 %] |\n|---|---|---|")
    found = {name: measured(groups, seed) for name, groups in named.items()}
    for name, item in found.items():
        print(f"| {name} | {item['one_seed']:.2f} | {item['mean']:.2f} [{item['low']:.2f}, {item['high']:.2f}] |")
    return {name: {key: round(value, 4) for key, value in item.items()} for name, item in found.items()}


def evaluated(args: argparse.Namespace) -> list[list[list[EvaluationReport]]]:
    """Reports by document, candidate and seed; rejected candidates are left out, they have no noise."""
    # The classroom loads torch; the published rewards need none.
    from benchmarks.classroom import Classroom, Setup, documents

    setup = Setup(args.model, "nf4", args.threads, args.seed, args.slots)
    sampling = Sampling(temperature=args.temperature, max_new_tokens=args.new_tokens)
    room = Classroom(setup, sampling=sampling, folder=args.folder)
    try:

        def reports_of(item: TaskWithQuiz) -> list[list[EvaluationReport]]:
            def outcome(edit_and_repeat: tuple[SelfEdit, int]) -> EvaluationOutcome:
                edit, repeat = edit_and_repeat
                return room.evaluate(item, edit, repeat=repeat)[1]

            written = room.write(item, args.format, args.candidates, room.policies.initial.version, "collect")
            edits = [candidate.result for candidate in written if isinstance(candidate.result, SelfEdit)]
            outcomes = room.each(outcome, [(edit, repeat) for edit in edits for repeat in range(args.repeats)])
            of_edits = [outcomes[start : start + args.repeats] for start in range(0, len(outcomes), args.repeats)]
            return [[each for each in found if isinstance(each, EvaluationReport)] for found in of_edits]

        return room.each(reports_of, documents("train", args.documents, args.model))
    finally:
        room.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--published-only", action="store_true", help="analyse the published rewards and stop")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="seeds of each candidate")
    parser.add_argument("--format", default="self-qa+directives")
    parser.add_argument("--temperature", type=float, default=0.7, help="that the teacher writes at; top_p is 1")
    parser.add_argument("--new-tokens", type=int, default=160, help="longest self-edit")
    parser.add_argument("--threads", type=int, default=1, help="of each evaluation")
    parser.add_argument("--slots", type=int, default=12, help="evaluations trained side by side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keeps reports here; the same command goes on from them")
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents, args.candidates, args.repeats, args.format = "tiny", 2, 2, 2, "implications"
    begun = time.monotonic()
    found: dict[str, dict[str, float]] = {}
    if PUBLISHED.exists():
        rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))
        print(f"published rewards: {len(rows)} documents x 5 candidates x 3 seeds")
        found |= table({"published accuracy": [[c["adapted"] for c in row["candidates"]] for row in rows]}, args.seed)
    else:
        print(f"skipped: the published rewards are not at {PUBLISHED}")
    if not args.published_only:
        reports = evaluated(args)
        print(
            f"\n{args.model}, {args.format} at temperature {args.temperature}, {platform.machine()}, seed {args.seed}: "
            f"{args.documents} documents x {args.candidates} candidates x {args.repeats} seeds"
        )
        named = {
            name: [[[reward_of(report, settings).value for report in each] for each in group] for group in reports]
            for name, settings in REWARDS.items()
        }
        found |= table(named, args.seed)
    print(f"\n{time.monotonic() - begun:.0f} s")
    print(json.dumps({"seed": args.seed, "reliability": found}))


if __name__ == "__main__":
    main()

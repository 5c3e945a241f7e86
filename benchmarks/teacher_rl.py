"""Does RL make a better teacher? Trained against untrained on held-out documents; recipe chosen on training documents.

Five stages. What they find lies in the folder, so that a run that was cut off, or asked for stage by stage, goes on:

    collect   candidates of the untrained teacher about the learning documents, each with its reward
    learn     a policy of each recipe (algorithm, format) from those; algorithms share their format's candidates
    choose    each policy beside the untrained one on the choosing documents; the highest low end of an interval wins
    advance   that recipe goes on, round by round, from what its own policy writes about the learning documents
    judge     its last policy beside the untrained teacher on the held-out documents, once

Both teachers write from the same seeds, and the student trains under the same ones, so that all differences are paired.
The metric is the run's own reward, the gain by `contains` plus a tenth of the gain in log-likelihood; a rejected edit
leaves the student as it is and counts 0 (a policy learns from -0.1). Intervals: 95 %, bootstrap over documents.

The published protocol (SEAL, section 4: 50 documents, 5 self-edits each, 3 seeds, 2 rounds; judged on other documents):

    python benchmarks/teacher_rl.py --train-file TRAIN.json --judge-file DEV.json --learn-documents 50 --candidates 5 \
        --evaluation-seeds 3 --rounds 2 --algorithms rest_em --then rest_em --formats implications --processes 1
on a machine with a GPU; on a CPU it would take days.
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
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import Classroom, Setup
from benchmarks.course import METRICS, SETTINGS, Course, Learned, Worth, mean
from orchestrator.report.bootstrap import paired_interval
from tutelage.domain.policy import Sampling

STAGES = ("collect", "learn", "choose", "advance", "judge")


def show(learned: Sequence[Learned]) -> None:
    """The table of recipes, the surest first."""
    print("\n| algorithm | format | kept | student's tokens | update | untrained | trained | difference [95 %] |")
    print("|---|---|---|---|---|---|---|---|")
    for each in learned:
        first, gap = each.rounds[0], each.difference
        update = first.update
        cost = f"{update.train_seconds:.0f} s, {update.peak_memory_bytes / 2**30:.1f} GiB"
        judged = f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" if gap else "-"
        rewards = f"{each.untrained:+.3f} | {each.trained:+.3f}" if gap else "- | -"
        print(
            f"| {each.recipe.algorithm} | {each.recipe.format} | {update.kept_candidates} of {first.scored} "
            f"| {first.kilotokens:.0f} k | {cost} | {rewards} | {judged} |"
        )


def show_rounds(each: Learned) -> None:
    """The table of the chosen recipe's rounds."""
    print(f"\n{each.recipe.algorithm} on {each.recipe.format}, round by round, on the learning documents:\n")
    print("| round | algorithm | reward before its update | kept | student's tokens | update |")
    print("|---|---|---|---|---|---|")
    for number, one in enumerate(each.rounds, 1):
        cost = f"{one.update.train_seconds:.0f} s, {one.update.peak_memory_bytes / 2**30:.1f} GiB"
        kept = f"{one.update.kept_candidates} of {one.scored}"
        name = one.update.policy.algorithm
        print(f"| {number} | {name} | {one.reward:+.4f} | {kept} | {one.kilotokens:.0f} k | {cost} |")


def show_worth(worths: Sequence[Worth]) -> list[dict[str, object]]:
    """The table of what the student's profile is worth; its rows for the last line."""
    if not worths:
        return []
    print("\nThe student's profile in the prompt, on the choosing documents:\n")
    print("| format | teacher | without | told | difference [95 %] |\n|---|---|---|---|---|")
    for each in worths:
        gap = each.difference
        print(
            f"| {each.format} | {each.teacher} | {each.without:+.3f} | {each.told:+.3f} "
            f"| {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] |"
        )
    return [
        {
            "format": each.format,
            "teacher": each.teacher,
            "difference": round(each.difference.mean, 5),
            "low": round(each.difference.low, 5),
            "high": round(each.difference.high, 5),
        }
        for each in worths
    ]


def row(each: Learned) -> dict[str, object]:
    """A recipe in the last line's JSON."""
    return {
        "algorithm": each.recipe.algorithm,
        "format": each.recipe.format,
        "scored": [one.scored for one in each.rounds],
        "kept": [one.update.kept_candidates for one in each.rounds],
        "update_seconds": [round(one.update.train_seconds, 1) for one in each.rounds],
        "student_kilotokens": [round(one.kilotokens, 1) for one in each.rounds],
        "learning_reward": [round(one.reward, 4) for one in each.rounds],
        "difference": round(each.difference.mean, 5) if each.difference else None,
    }


def run_shares(args: argparse.Namespace, folder: Path, stage: str, rounds: int) -> None:
    """A stage by several processes, each on its share of the documents; `rounds` of the chosen recipe are done."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--stage", stage]
    command += ["--rounds", str(rounds)]
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
        course.collect(course.beginners, course.learning[share])
    elif stage == "choose":
        learned = course.learn()
        if len(learned) > 1:
            course.scores(learned, course.choosing[share], stage)
    else:
        chosen = course.advanced(course.choose()[0], course.args.rounds)
        if stage == "advance":
            course.collect_next(chosen, course.learning[share])
        else:
            course.scores([chosen], course.held_out[share], stage)


def do_all(course: Course, stage: str) -> dict[str, object]:
    """A stage and all before it, as far as the folder does not hold them yet; what the last line tells."""
    args = course.args
    if stage == "profile":
        # By one process: two would find other mistakes, since what is answered beside others may be worded otherwise.
        return {"stage": stage, "mistakes": len(course.mistakes())}
    if stage == "collect":
        means = {
            name: mean([item.reward or 0.0 for group in groups for item in group.candidates])
            for (name, _), (groups, _) in course.collect(course.beginners, course.learning).items()
        }
        return {"stage": stage, "mean_reward": means}
    learned = course.learn() if stage == "learn" else course.choose()
    show(learned)
    profile = show_worth(course.profile_worth(learned) if stage != "learn" and len(learned) > 1 else [])
    if stage in ("advance", "judge"):
        show_rounds(course.advanced(learned[0], args.rounds))
    recipes = [row(each) for each in learned]
    if stage != "judge":
        return {"stage": stage, "recipes": recipes, "profile": profile}
    scores = course.scores(learned[:1], course.held_out, stage)
    before, after = (scores[learned[0].recipe.format, policy] for policy in course.policies(learned[0]))
    found = {}
    for name in METRICS:
        gap = paired_interval(before.gains[name], after.gains[name], seed=args.seed)
        assert gap is not None
        values = (mean(before.gains[name]), mean(after.gains[name]), gap.mean, gap.low, gap.high)
        found[name] = dict(
            zip(("untrained", "trained", "difference", "low", "high"), (round(v, 5) for v in values), strict=True)
        )
    return {
        "metric": "reward",
        **found["reward"],
        "documents": len(course.held_out),
        "seeds": args.seeds,
        "rounds": args.rounds,
        "algorithm": learned[0].recipe.algorithm,
        "format": learned[0].recipe.format,
        **{name: found[name] for name in METRICS[1:]},
        "rejected": {"untrained": before.rejected, "trained": after.rejected},
        "student_kilotokens": {"untrained": round(before.kilotokens, 1), "trained": round(after.kilotokens, 1)},
        "recipes": recipes,
        "profile": profile,
    }


def work(args: argparse.Namespace, folder: Path, stage: str) -> dict[str, object]:
    """A process's share of a stage, or the whole of it."""
    setup = Setup(args.model, "nf4", args.threads, args.seed, args.slots)
    own = args.processes if args.share is None else args.share
    sampling = Sampling(temperature=args.temperature, max_new_tokens=args.new_tokens)
    # While a policy learns, the other processes rest.
    threads = args.threads * args.processes
    room = Classroom(setup, sampling=sampling, folder=folder, own=own, update_threads=threads)
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
    parser.add_argument("--learn-documents", type=int, default=32)
    parser.add_argument("--choose-documents", type=int, default=8)
    parser.add_argument("--choose-seeds", type=int, default=2, help="as --seeds, of each recipe on those")
    parser.add_argument("--candidates", type=int, default=4, help="a learning document")
    parser.add_argument("--evaluation-seeds", type=int, default=1, help="evaluations of each, whose mean is its reward")
    parser.add_argument("--rounds", type=int, default=2, help="of writing and learning, for the chosen recipe")
    parser.add_argument(
        "--then", choices=tuple(SETTINGS), default="rloo", help="algorithm of the rounds after the first"
    )
    parser.add_argument("--train-file", type=Path, help="documents in place of the examples: JSONL or SQuAD JSON")
    parser.add_argument("--judge-file", type=Path, help="held-out documents in place of the examples")
    parser.add_argument("--algorithms", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    formats = ["self-qa+directives", "implications+directives", "self-qa"]
    parser.add_argument("--formats", nargs="+", default=formats, help="the first with each algorithm, all with rest_em")
    parser.add_argument("--temperature", type=float, default=0.7, help="that both teachers write at; top_p is 1")
    parser.add_argument("--new-tokens", type=int, default=160, help="longest self-edit")
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
        args.algorithms, args.formats = ["rest_em", "grpo"], ["rewrite", "rewrite+student"]
        args.rounds, args.evaluation_seeds = 2, 2
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as temporary:
        folder = args.folder or Path(temporary)
        if args.share is None and args.processes > 1:
            work(args, folder, "profile")
            for stage in STAGES[: STAGES.index(args.stage) + 1]:
                # Learning is no work to be shared: the updates of one teacher take turns.
                if stage == "learn":
                    work(args, folder, stage)
                elif stage == "advance":
                    for done in range(1, args.rounds):
                        run_shares(args, folder, stage, done)
                        work(argparse.Namespace(**{**vars(args), "rounds": done + 1}), folder, stage)
                else:
                    run_shares(args, folder, stage, args.rounds)
        told = work(args, folder, args.stage)
    if args.share is None:
        seconds = time.monotonic() - begun
        print(f"\n{args.model}, {platform.machine()}, {args.threads} threads, seed {args.seed}, {seconds:.0f} s")
        print(json.dumps({**told, "seed": args.seed, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()

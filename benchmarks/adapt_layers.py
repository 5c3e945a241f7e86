"""What `adapt_layers: last-N` costs in quiz score, and what it saves: the same edits with fewer and fewer layers.

Each edit is the passage and the quiz itself, so that there is something to lose. Scores are means over documents with a
95 % interval (bootstrap over documents) of the difference from adapting all layers; tokens a second are of the slots'
steps together.

    python benchmarks/adapt_layers.py            # SmolLM2-135M, NF4: a quarter of an hour on two cores
    python benchmarks/adapt_layers.py --quick    # a tiny random model
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import GRADERS, INNER_LOOP, Classroom, Setup, documents, quiz_itself
from orchestrator.report.bootstrap import paired_interval
from tutelage.domain.evaluation import EvaluationReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 20, 10, 5], help="last layers; 0 means all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents, args.layers, args.threads = "tiny", 2, [0, 1], 1
    items = documents("heldout", args.documents, args.model)
    room = Classroom(Setup(args.model, "nf4", args.threads, args.seed, slots=len(items)))
    scores: dict[int, dict[str, list[float]]] = {}
    rates: dict[int, float] = {}
    try:
        for layers in args.layers:
            room.inner_loop = replace(INNER_LOOP, adapt_last_layers=layers)
            begun = time.monotonic()
            outcomes = [outcome for _, outcome in room.each(lambda item: room.evaluate(item, quiz_itself(item)), items)]
            reports = [outcome for outcome in outcomes if isinstance(outcome, EvaluationReport)]
            if len(reports) < len(items):
                raise SystemExit(f"{len(items) - len(reports)} edits were rejected")
            scores[layers] = {name: [report.after.scores[name] for report in reports] for name in GRADERS}
            training = sum(report.cost.train_seconds for report in reports)
            rates[layers] = sum(report.cost.tokens for report in reports) / training
            print(f"  {layers or 'all'} layers: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    finally:
        room.close()
    whole = scores[args.layers[0]]
    print(f"{room.setup}, {platform.machine()}, {len(items)} documents\n")
    print("| layers | contains | less all [95 %] | log-likelihood | less all [95 %] | tokens a second |")
    print("|---|---|---|---|---|---|")
    figures: dict[str, dict[str, float]] = {}
    for layers, found in scores.items():
        name = f"last {layers}" if layers else "all"
        cells, figures[name] = [name], {"tokens_per_s": round(rates[layers], 1)}
        for grader in ("contains", "loglik"):
            mean = sum(found[grader]) / len(items)
            apart = paired_interval(whole[grader], found[grader], seed=args.seed)
            assert apart is not None
            cells += [f"{mean:.3f}", f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"]
            figures[name][grader] = round(mean, 4)
        print("| " + " | ".join(cells) + f" | {rates[layers]:.0f} |")
    print("\n" + json.dumps({"layers": figures, "documents": len(items), "seed": args.seed}))


if __name__ == "__main__":
    main()

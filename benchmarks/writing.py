"""How fast does a teacher write? Tokens a second of some candidates, with weights unpacked for each token or once.

The ways take turns, so that what else the machine does meets all of them; each is given with its range. They write the
same: the command ends with 1 where they do not.

    python benchmarks/writing.py            # SmolLM2-135M, NF4: some minutes on two cores
    python benchmarks/writing.py --quick    # a tiny random model
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.classroom import documents
from teacher.config import TeacherSettings
from teacher.engine import Writer
from teacher.formats import builtin_formats
from teacher.policies import PolicyStore
from tutelage.domain.policy import Sampling, format_by_name
from tutelage.models.loading import Dequantise, load_model
from tutelage.models.tiny import write_tiny_model

WAYS: tuple[Dequantise, ...] = ("each-pass", "once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--format", default="self-qa")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.model, args.documents, args.new_tokens, args.threads, args.format = "tiny", 2, 16, 1, "implications"
    items = documents("train", args.documents, args.model)
    format = format_by_name(args.format, builtin_formats())
    if format is None:
        parser.error(f"--format {args.format}: one of {', '.join(known.name for known in builtin_formats())}")
    sampling = Sampling(0.7, 1.0, args.new_tokens)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as folder:
        model = str(write_tiny_model(Path(folder) / "tiny", context=2048)) if args.model == "tiny" else args.model
        settings = TeacherSettings.model_validate({"model": model, "threads": args.threads, "data_dir": folder})
        writers = {}
        for way in WAYS:
            loaded = load_model(model, threads=args.threads, dequantise=way)
            policies = PolicyStore(settings.data_dir / "policies", loaded.revision)
            writers[way] = Writer(loaded, policies, settings)
        for item in items:
            texts = []
            for way, writer in writers.items():
                begun = time.monotonic()
                version = policies.initial.version
                made = list(writer.write(item.task, format, args.candidates, sampling, version, args.seed))
                rates[way].append(sum(each.completion_tokens for each in made) / (time.monotonic() - begun))
                texts.append(sorted((each.index, each.text) for each in made))
            if texts[0] != texts[1]:
                raise SystemExit(f"{item.task.id}: what is written depends on how weights are unpacked")
    print(
        f"{args.model}, {platform.machine()}, {args.threads} threads, seed {args.seed}, {args.candidates} candidates a"
    )
    print(f"document, {args.documents} documents, {args.format}, the prompt's reading included\n")
    print("| weights unpacked | tokens a second | range |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.mean(found):.1f} | {min(found):.1f} to {max(found):.1f} |")
    means = {name: round(statistics.mean(found), 2) for name, found in rates.items()}
    print("\n" + json.dumps({"tokens_per_s": means, "candidates": args.candidates, "seed": args.seed}))


if __name__ == "__main__":
    main()

"""What an update of the policy costs: seconds and peak memory of each algorithm on the same scored groups.

Prompts and completions are random ids of the lengths that a passage and a self-edit have; what is measured does not
depend on what they say. Each update runs in a process of its own, as in the service.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from teacher.algorithms import BUILT_IN
from teacher.config import TeacherSettings
from teacher.policies import PolicyStore
from teacher.updates import Updates
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateRequest, UpdateResult, UpdateSettings
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import policy_pb2

TOKENIZER = "random ids"
GIB = 2**30


def groups_of(args: argparse.Namespace, version: str, vocabulary: int) -> tuple[CandidateGroup, ...]:
    """`groups` prompts with `candidates` scored completions each."""
    order = random.Random(args.seed)

    def ids(least: int, most: int) -> list[int]:
        return [order.randrange(vocabulary) for _ in range(order.randint(least, most))]

    found = []
    for g in range(args.groups):
        prompt = ids(args.prompt * 2 // 3, args.prompt)
        scored = []
        for c in range(args.candidates):
            completion = ids(args.completion // 3, args.completion)
            rollout = policy_pb2.Rollout(
                policy_version=version,
                tokenizer_hash=TOKENIZER,
                prompt_ids=prompt,
                completion_ids=completion,
                log_probs=[-3.0] * len(completion),
                ended=True,
            )
            scored.append(ScoredCandidate(f"{g}-{c}", rollout.SerializeToString(), order.uniform(0.05, 1.0)))
        found.append(CandidateGroup(f"group-{g:03}", tuple(scored)))
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quantisation", default="nf4", choices=("nf4", "int8", "none"))
    parser.add_argument("--algorithms", nargs="+", default=list(BUILT_IN), choices=list(BUILT_IN))
    parser.add_argument("--groups", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=360, help="longest prompt, in tokens; the shortest is two thirds")
    parser.add_argument(
        "--completion", type=int, default=192, help="longest completion, in tokens; the shortest a third"
    )
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--rows", type=int, default=None, help="most candidates a pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.groups, args.candidates, args.prompt, args.completion, args.rank = 4, 3, 60, 30, 8
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            args.model = str(write_tiny_model(Path(folder) / "model"))
        settings = TeacherSettings(
            model=args.model,
            device=args.device,
            quantisation=args.quantisation,
            threads=args.threads,
            update_rows=args.rows,
            data_dir=Path(folder) / "data",
        )
        loaded = load_model(args.model, quantisation=args.quantisation, device=args.device, threads=args.threads)
        vocabulary, parameters, device = len(loaded.tokenizer), loaded.parameters, loaded.device
        policies = PolicyStore(settings.data_dir / "policies", loaded.revision)
        # Another copy of the model beside the one that trains would only blur the picture.
        del loaded
        updates = Updates(settings, policies, TOKENIZER)
        groups = groups_of(args, policies.initial.version, vocabulary)
        results: dict[str, dict[str, float | int]] = {}
        for name in args.algorithms:
            own = UpdateSettings(
                rank=args.rank, alpha=2 * args.rank, learning_rate=1e-5, epochs=args.epochs, batch_size=args.batch_size
            )
            asked = UpdateRequest(policies.initial.version, name, own, groups, args.seed, "benchmark", 1)
            begun = time.monotonic()
            *_, result = updates.update(asked)
            if not isinstance(result, UpdateResult) or not result.updated:
                raise SystemExit(f"{name} learnt nothing: {result}")
            results[name] = {
                "kept": result.kept_candidates,
                "seconds": round(time.monotonic() - begun, 1),
                "peak_memory_gib": round(result.peak_memory_bytes / GIB, 2),
                "peak_gpu_memory_gib": round(result.peak_gpu_memory_bytes / GIB, 2),
            }
            print(f"  {name} after {results[name]['seconds']} s", flush=True)
    print(
        f"\n{args.groups} groups of {args.candidates}, {parameters / 1e6:.0f} M parameters, {args.quantisation}, "
        f"{device}, {args.threads} threads, rank {args.rank}, {args.epochs} epochs, seed {args.seed}\n"
    )
    print(
        "| algorithm | candidates learnt from | seconds | seconds a candidate and epoch | peak GiB | peak GiB of GPU |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in results.items():
        each = row["seconds"] / row["kept"] / args.epochs
        print(
            f"| {name} | {row['kept']} | {row['seconds']} | {each:.2f} | {row['peak_memory_gib']} | "
            f"{row['peak_gpu_memory_gib']} |"
        )
    print(
        json.dumps(
            {
                "groups": args.groups,
                "candidates": args.candidates,
                "quantisation": args.quantisation,
                "device": device,
                "threads": args.threads,
                "seed": args.seed,
                "algorithms": results,
            }
        )
    )


if __name__ == "__main__":
    main()

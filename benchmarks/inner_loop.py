"""How fast a student grades self-edits: the bank, against PEFT, HF Trainer and the published procedure, and the floors.

All in one run, alternating, on the same NF4 base: (a) the student's bank with K slots; (b) a bare PEFT loop, one edit
at a time, unpadded, baseline cached; (c) HF Trainer, one edit at a time, unpadded, baseline answered for each edit and
one question at a time; (d) the published procedure: every sequence padded to 2,048 with loss on the pads, from the time
of some steps. On a CPU the bank holds its weights unpacked, as a student with memory to spare does; (b), (c) and (d)
unpack NF4 in each pass, as PEFT does, and (b) is timed once more on unpacked weights. All but the bank have a process
of their own there, so that peaks of memory are apart.

The floor is 4 x parameters x tokens over the matmul rate measured in the same run, beside the tokens a second that the
bank's steps reach with the most slots; on a GPU there is one of bytes beside it, and the most slots that a memory of
24 GiB holds are sought.

    python benchmarks/inner_loop.py                          # SmolLM2-135M, NF4: an hour and a half on two cores
    python benchmarks/inner_loop.py --quick                  # a tiny random model
    python benchmarks/inner_loop.py --geometry qwen2.5-7b    # a GPU: random weights, LoRA on q and v, then on all

The last line is JSON: vs_peft, vs_peft_unpacked (CPU), vs_trainer, vs_published, vs_floor, best_k, peak_mib.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.geometry import GEOMETRIES, random_model, tokenizer_of
from benchmarks.inner_loop_alone import Asked, Took, alone, begin_peak, peak_mib, weight_bytes
from benchmarks.inner_loop_ways import Workload, by_bank, by_peft, seconds_of, workload
from student.bank import Bank
from student.bank_step import Limits, StepFailed, step
from student.capacity import pass_bytes
from student.packing import enable_packing
from student.slot import Slot
from tutelage.models.loading import Dequantise, LoadedModel, choose_device, load_model
from tutelage.models.tiny import write_tiny_model

PUBLISHED_LENGTH = 2048
UNPACKED = "(b) PEFT alone, weights unpacked"
OTHERS = {"(b) PEFT alone": "peft", UNPACKED: "peft-unpacked", "(c) HF Trainer alone": "trainer"}
"""Names of the table and of WAYS."""
FIGURES = {"(b) PEFT alone": "vs_peft", UNPACKED: "vs_peft_unpacked", "(c) HF Trainer alone": "vs_trainer"}
HELD_GIB = 24


@dataclass
class Timed:
    """Evaluations an hour of one way, over its alternations."""

    per_hour: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    """Of the training alone."""
    peak_mib: float = 0.0

    def add(self, evaluations: int, tokens: float, seconds: float, training: float, peak_mib: float) -> None:
        self.per_hour.append(3600 * evaluations / seconds)
        self.tokens_per_s.append(tokens / training)
        self.peak_mib = max(self.peak_mib, peak_mib)

    def line(self, name: str) -> str:
        low, high = min(self.per_hour), max(self.per_hour)
        rate, mean = statistics.mean(self.tokens_per_s), statistics.mean(self.per_hour)
        return f"| {name} | {mean:.1f} | {low:.1f} to {high:.1f} | {rate:.0f} | {self.peak_mib:.0f} |"


def matmul_rate(loaded: LoadedModel) -> float:
    """FLOP a second of the base's largest kind of product; small ones of a GPU would be bound by its memory."""
    config, device = loaded.model.config.get_text_config(), torch.device(loaded.device)
    dtype = torch.bfloat16 if loaded.compute_dtype == "bfloat16" else torch.float32
    tokens = 640 if device.type == "cpu" else 8192
    features, out = int(config.hidden_size), int(config.intermediate_size)
    a = torch.randn(tokens, features, dtype=dtype, device=device)
    b = torch.randn(out, features, dtype=dtype, device=device)
    for _ in range(5):
        torch.nn.functional.linear(a, b)

    def multiply() -> None:
        for _ in range(20):
            torch.nn.functional.linear(a, b)

    seconds = min(seconds_of(multiply) for _ in range(5))
    return 20 * 2 * tokens * features * out / seconds


def bytes_floor(loaded: LoadedModel, bank: Bank, load: Workload, slots: int) -> float:
    """Tokens a second, were each step to move its bytes once, and nothing else took time.

    Weights as they are held, forward and backward; of each adapter in float32 the values twice, the gradient once, and
    the seven passes of AdamW.
    """
    embedding = loaded.model.get_input_embeddings().weight
    # A step reads some rows of the embedding, unless it is the head's weight too.
    looked_up = 0 if embedding is loaded.model.get_output_embeddings().weight else embedding.numel() * 2
    weights = weight_bytes(loaded) - looked_up
    adapter = Slot(bank, load.rows(loaded, 0), load.loop, 0).adapter.values_P.numel()
    whole = torch.empty(2**28, dtype=torch.uint8, device=loaded.device)
    other = torch.empty_like(whole)
    rate = 10 * 2 * len(whole) / min(seconds_of(lambda: [other.copy_(whole) for _ in range(10)]) for _ in range(5))
    rows = [row for edit in range(len(load.edits)) for row in load.rows(loaded, edit)]
    tokens = statistics.mean(len(row.ids) for row in rows) * slots
    return tokens * rate / (2 * weights + 4 * 10 * slots * adapter)


def most_slots(loaded: LoadedModel, bank: Bank, load: Workload, gib: float, beside: LoadedModel) -> int:
    """The most slots whose longest step goes through on a GPU of so much memory; found by trying.

    `beside` lies on the device too, and does not count.
    """
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(bank.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib * 2**30 + weight_bytes(beside)) / whole), bank.device)

    # As a student of such a card holds its passes: half of what the weights leave, and computed again above it.
    room = (int(gib * 2**30) - weight_bytes(loaded)) // 2
    limits = Limits(2048, max(1, room // (pass_bytes(bank, 1) - pass_bytes(bank, 0))))

    def holds(count: int) -> bool:
        try:
            slots = [
                Slot(bank, [max(load.rows(loaded, i % len(load.edits)), key=lambda row: len(row.ids))], load.loop, i)
                for i in range(count)
            ]
            list(step(bank, slots, limits))
        except (torch.OutOfMemoryError, StepFailed) as error:
            if isinstance(error, StepFailed) and not isinstance(error.error, torch.OutOfMemoryError):
                raise
            return False
        finally:
            # The error's traceback holds the tensors of the pass that failed.
            gc.collect()
            torch.cuda.empty_cache()
        return True

    low, high = 0, 8
    while holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0, bank.device)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--geometry", choices=list(GEOMETRIES), help="random weights of this geometry in its place")
    parser.add_argument(
        "--placement", choices=("both", "published", "all-linear"), default="both", help="of LoRA, with --geometry"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--edits", type=int, default=16, help="of the bank; the others get four")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.length = PUBLISHED_LENGTH
    if args.quick:
        args.edits, args.epochs, args.alternations, args.slots, args.max_new_tokens = 2, 1, 1, [1, 2], 4
        args.length = 256
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_tiny_model(Path(folder) / "tiny", context=4096)) if args.quick else args.model
        if args.geometry:
            ours = random_model(args.geometry, args.device, args.seed, tokenizer_of(model))
            theirs = random_model(args.geometry, args.device, args.seed, tokenizer_of(model))
            figures: dict[str, float] = {}
            if args.placement != "all-linear":
                figures |= measure(args, ours, theirs, rank=32, targets=("q_proj", "v_proj"))
            if args.placement != "published":
                everywhere = measure(args, ours, theirs, rank=32, targets=())
                figures |= {f"{name}_all_linear": value for name, value in everywhere.items()}
        else:
            on_cpu = choose_device(args.device).type == "cpu"
            held: Dequantise = "once" if on_cpu else "each-pass"
            ours = load_model(model, device=args.device, threads=args.threads, dequantise=held)
            beside = None if on_cpu else load_model(model, device=args.device, threads=args.threads)
            args.model = model
            figures = measure(args, ours, beside, rank=16, targets=())
    print(f"whole run {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(json.dumps({**{name: round(value, 3) for name, value in figures.items()}, "seed": args.seed}))


def measure(
    args: argparse.Namespace, ours: LoadedModel, theirs: LoadedModel | None, rank: int, targets: tuple[str, ...]
) -> dict[str, float]:
    """Prints the table of one placement of LoRA; its figures. Without `theirs` others have processes of their own."""
    load = workload(args.edits, args.epochs, args.seed, rank, targets)
    enable_packing(ours.model)
    bank = Bank(ours)
    few = min(4, args.edits)
    tokens = [load.tokens(ours, i) for i in range(args.edits)]
    timed: dict[str, Timed] = {f"(a) bank, {k} slots": Timed() for k in args.slots}
    others = {name: Timed() for name in OTHERS if theirs is None or name != UNPACKED}
    steps: list[Took] = []
    rates: list[float] = []
    if bank.device.type == "cuda":
        # Kernels are loaded when they are first called.
        short = workload(1, 1, args.seed, rank, targets)
        by_bank(ours, bank, short, 1, 1, 4)
        assert theirs is not None
        by_peft(theirs, short, 0, 4)
    for alternation in range(args.alternations):
        for k in args.slots:
            edits = args.edits if k > 1 else few
            before = matmul_rate(ours)
            begin_peak()
            seconds, training = by_bank(ours, bank, load, k, edits, args.max_new_tokens)
            timed[f"(a) bank, {k} slots"].add(edits, sum(tokens[:edits]), seconds, training, peak_mib(theirs))
            if k == max(args.slots):
                # A machine that others share changes its speed: each run has the floor of its own minutes.
                rates.append(max(before, matmul_rate(ours)))
        asked = Asked(
            "published", args.model, args.threads, args.seed, few, args.epochs, rank, targets, args.max_new_tokens,
            args.length, 5 if alternation == 0 and not args.quick else 1,
        )  # fmt: skip
        for name, times in others.items():
            for took in alone(replace(asked, way=OTHERS[name]), theirs, ours):
                times.add(1, took.tokens, took.seconds, took.training, took.peak_mib)
        steps += alone(asked, theirs, ours)
        print(f"alternation {alternation + 1} of {args.alternations}", file=sys.stderr, flush=True)
    rows = len(load.edits[0].documents)
    published = 3600 / (statistics.mean(took.seconds for took in steps) * rows * args.epochs)
    floors = [rate / (4 * ours.parameters) for rate in rates]
    best = max(timed, key=lambda name: statistics.mean(timed[name].per_hour))
    on_cpu = bank.device.type == "cpu"
    place = f"{platform.machine()}, {args.threads} threads" if on_cpu else torch.cuda.get_device_name(bank.device)
    print(f"{ours.name}, {ours.quantisation}, {ours.compute_dtype}, {place}")
    print(f"LoRA of rank {rank} on {', '.join(targets) or 'all linear layers'}")
    size = statistics.mean(tokens)
    print(f"seed {args.seed}, {args.edits} edits of {rows} rows, {args.epochs} epochs, {size:.0f} tokens each\n")
    print("| way | evaluations an hour | spread | tokens a second, training | peak MiB |\n|---|---|---|---|---|")
    for name, times in {**timed, **others}.items():
        print(times.line(name))
    peak = max(took.peak_mib for took in steps)
    print(f"| (d) published, training alone | {published:.2f} | from {len(steps)} timings of steps | | {peak:.0f} |")
    shown = f"4 x {ours.parameters} at {statistics.mean(rates) / 1e9:.0f} GFLOP/s"
    print(f"| floor: {shown} | | | {statistics.mean(floors):.0f} | |")
    mean = statistics.mean(timed[best].per_hour)
    most = timed[f"(a) bank, {max(args.slots)} slots"].tokens_per_s
    figures = {
        **{FIGURES[name]: mean / statistics.mean(times.per_hour) for name, times in others.items()},
        "vs_published": mean / published,
        "vs_floor": statistics.mean(floor / reached for floor, reached in zip(floors, most, strict=True)),
        "best_k": args.slots[list(timed).index(best)],
        "peak_mib": timed[best].peak_mib,
    }
    if bank.device.type == "cuda":
        figures["tokens_per_s_bytes_floor"] = bytes_floor(ours, bank, load, max(args.slots))
        print(f"| floor of bytes, {max(args.slots)} slots | | | {figures['tokens_per_s_bytes_floor']:.0f} | |")
        figures["seconds_an_evaluation"] = 3600 / mean
        assert theirs is not None
        figures["most_slots"] = most_slots(ours, bank, load, HELD_GIB, theirs)
        print(f"\nmost slots within {HELD_GIB} GiB: {figures['most_slots']:.0f}")
    print()
    bank.close()
    return figures


if __name__ == "__main__":
    main()

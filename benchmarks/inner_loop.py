"""How fast a student grades self-edits: the bank, against PEFT, HF Trainer and the published procedure, and the floor.

All in one run, alternating, on the same base: (a) the student's bank with K slots; (b) a bare PEFT loop, one edit at a
time, unpadded, baseline cached; (c) HF Trainer, one edit at a time, unpadded, baseline answered for each edit and
one question at a time; (d) the published procedure: every sequence padded to 2,048 with loss on the pads, from the time
of some steps. The floor is 4 x parameters x tokens over the matmul rate measured in the same run, beside the tokens a
second that the bank's steps reach with the most slots.

    python benchmarks/inner_loop.py            # SmolLM2-135M, NF4: an hour on two cores
    python benchmarks/inner_loop.py --quick    # a tiny random model

The last line is JSON: vs_peft, vs_trainer, vs_published, vs_floor, best_k, peak_mib.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from benchmarks.peft_loop import fresh_parameters, peft_adapted, train_alone
from student.bank import Bank
from student.bank_step import Limits
from student.capacity import Capacity
from student.evaluation import Evaluation, QuizSettings
from student.evaluations import EvaluationStore
from student.inner_loop import Row
from student.packing import enable_packing
from student.quiz_room import take_quizzes
from student.room import Guest, Room
from tutelage.domain.evaluation import Bounds, EvaluationKey, EvaluationReport, InnerLoopSettings, QuizResult
from tutelage.domain.self_edit import LossMask, SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.chat import NO_LOSS, document_ids, prompt_ids
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model

WORDS = ("heron", "key", "seal", "salt", "trader", "lamp", "bridge", "town", "winter", "harbour", "bell", "copper")
PUBLISHED_LENGTH = 2048


@dataclass(frozen=True)
class Workload:
    edits: tuple[SelfEdit, ...]
    quizzes: tuple[Quiz, ...]
    loop: InnerLoopSettings

    def rows(self, loaded: LoadedModel, edit: int) -> list[Row]:
        documents = self.edits[edit].documents
        return [Row(*map(tuple, document_ids(loaded.tokenizer, each, LossMask.COMPLETION))) for each in documents]

    def tokens(self, loaded: LoadedModel, edit: int) -> int:
        return self.loop.epochs * sum(len(row.ids) for row in self.rows(loaded, edit))


def workload(edits: int, epochs: int, seed: int) -> Workload:
    """Edits of 8 lines and a passage, with 5 questions each."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    made, quizzes = [], []
    for i in range(edits):
        passage = question_answer(f"What do you know about place {i}?", words(110, 150))
        lines = [question_answer(f"What is {words(3, 6)} of place {i}?", words(4, 12)) for _ in range(8)]
        made.append(SelfEdit((passage, *lines)))
        quizzes.append(Quiz(tuple(Question(f"q{j}", f"Which {words(3, 6)}?", words(1, 3)) for j in range(5))))
    return Workload(tuple(made), tuple(quizzes), InnerLoopSettings(rank=16, alpha=32, epochs=epochs, batch_size=1))


@dataclass
class Timed:
    """Evaluations an hour of one way, over its alternations."""

    per_hour: list[float] = field(default_factory=list)
    tokens_per_s: list[float] = field(default_factory=list)
    """Of the training alone."""
    peak_mib: float = 0.0

    def add(self, evaluations: int, tokens: float, seconds: float, training: float) -> None:
        self.per_hour.append(3600 * evaluations / seconds)
        self.tokens_per_s.append(tokens / training)
        self.peak_mib = max(self.peak_mib, peak_mib())

    def line(self, name: str) -> str:
        low, high = min(self.per_hour), max(self.per_hour)
        rate, mean = statistics.mean(self.tokens_per_s), statistics.mean(self.per_hour)
        return f"| {name} | {mean:.1f} | {low:.1f} to {high:.1f} | {rate:.0f} | {self.peak_mib:.0f} |"


def begin_peak() -> None:
    """The peak of the memory is counted anew from now on, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Most resident memory since `begin_peak`."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds_of(work: Callable[[], Any]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def by_bank(
    loaded: LoadedModel, bank: Bank, load: Workload, slots: int, edits: int, max_new_tokens: int
) -> tuple[float, float]:
    """All edits through a room of `slots`, baselines known; seconds of it all, and of its steps."""
    training = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = EvaluationStore(Path(folder), hold_s=0, max_held_bytes=2**40)
        quiz = QuizSettings(max_new_tokens, 64)
        room = Room(bank, store, quiz, Capacity(bank, 2**34, slots, Limits(2048)))
        waiting = []
        for i in range(edits):
            key = EvaluationKey(
                loaded.name, loaded.revision, loaded.quantisation, "", load.edits[i], load.quizzes[i], Quiz(),
                ("contains",), load.loop, "benchmark", i,
            )  # fmt: skip
            waiting.append(Evaluation(loaded, key, None, bounds=Bounds(), quiz=quiz, store=store))
        asked = {key: sitting for evaluation in waiting for key, sitting in evaluation.missing_baselines().items()}
        known = take_quizzes(bank, list(asked.values()), max_new_tokens=max_new_tokens, batch_size=64)
        for key, answers in zip(asked, known, strict=True):
            assert not isinstance(answers, ArithmeticError)
            store.keep_baseline(key, QuizResult.of(answers))
        ended = 0
        begun = time.monotonic()
        while ended < edits:
            while waiting and room.free:
                room.admit(Guest(waiting.pop(0), lambda: False, lambda progress: None))
            departures = room.advance()
            training += room.last_step_seconds or 0.0
            for _, outcome in departures:
                assert not isinstance(outcome, Exception), outcome
                assert isinstance(outcome.outcome, EvaluationReport), outcome.outcome
                ended += 1
        seconds = time.monotonic() - begun
        store.close()
    return seconds, training


def _answer(loaded: LoadedModel, model: Any, quiz: Quiz, max_new_tokens: int, *, one_by_one: bool) -> None:
    """Greedy answers as transformers generates them."""
    prompts = [prompt_ids(loaded.tokenizer, question.text) for question in quiz.questions]
    batches = [[prompt] for prompt in prompts] if one_by_one else [prompts]
    for batch in batches:
        longest = max(len(prompt) for prompt in batch)
        pad = loaded.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad
            )


def by_peft(loaded: LoadedModel, load: Workload, edit: int, max_new_tokens: int) -> float:
    with peft_adapted(loaded, fresh=load.loop, seed=edit) as model:
        training = seconds_of(lambda: train_alone(model, load.rows(loaded, edit), load.loop, edit))
        _answer(loaded, model, load.quizzes[edit], max_new_tokens, one_by_one=False)
    return training


def by_trainer(loaded: LoadedModel, load: Workload, edit: int, max_new_tokens: int) -> float:
    _answer(loaded, loaded.model, load.quizzes[edit], max_new_tokens, one_by_one=True)
    rows = [{"input_ids": list(row.ids), "labels": list(row.labels)} for row in load.rows(loaded, edit)]
    lora = LoraConfig(r=load.loop.rank, lora_alpha=int(load.loop.alpha), target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(loaded.model, lora)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, num_train_epochs=load.loop.epochs, save_strategy="no",
            learning_rate=load.loop.learning_rate, lr_scheduler_type="linear", report_to=[], disable_tqdm=True,
            logging_strategy="no", use_cpu=True, remove_unused_columns=False, seed=edit,
        )  # fmt: skip
        # It prints its own summary, where a table is to stand.
        with contextlib.redirect_stdout(sys.stderr):
            training = seconds_of(Trainer(model, arguments, train_dataset=rows, data_collator=_collate).train)
    model.eval()
    _answer(loaded, model, load.quizzes[edit], max_new_tokens, one_by_one=True)
    model.unload()
    if hasattr(loaded.model, "peft_config"):
        del loaded.model.peft_config
    return training


def _collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def published_step_seconds(loaded: LoadedModel, load: Workload, length: int, steps: int) -> float:
    """Of a step on one sequence padded to `length`, with loss on the pads."""
    row = load.rows(loaded, 0)[1]
    pad = loaded.tokenizer.pad_token_id
    ids = (*row.ids, *[pad] * (length - len(row.ids)))
    labels = (*[token if label == NO_LOSS else label for token, label in zip(row.ids, row.labels, strict=True)],)
    padded = Row(ids, (*labels, *[pad] * (length - len(row.ids))))
    with peft_adapted(loaded, fresh=load.loop, seed=0) as model:
        optimised = len(fresh_parameters(model))
        assert optimised
        return seconds_of(lambda: train_alone(model, [padded], load.loop, 0, steps=steps)) / steps


def matmul_rate(dtype: torch.dtype, tokens: int = 640, features: int = 576, out: int = 1536) -> float:
    """FLOP a second of the base's kind of product."""
    a, b = torch.randn(tokens, features, dtype=dtype), torch.randn(out, features, dtype=dtype)
    for _ in range(5):
        torch.nn.functional.linear(a, b)
    seconds = min(seconds_of(lambda: [torch.nn.functional.linear(a, b) for _ in range(20)]) for _ in range(5))
    return 20 * 2 * tokens * features * out / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model: proves the machinery, shows nothing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--edits", type=int, default=16, help="of the bank; the others get four")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    length = PUBLISHED_LENGTH
    if args.quick:
        args.edits, args.epochs, args.alternations, args.slots, args.max_new_tokens, length = 2, 1, 1, [1, 2], 4, 256
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tiny = {"context": 4096, "chat_template": True}
        model = str(write_tiny_model(Path(folder) / "tiny", **tiny)) if args.quick else args.model
        measure(args, model, length)
    print(f"whole run {time.monotonic() - begun:.0f} s", file=sys.stderr)


def measure(args: argparse.Namespace, model: str, length: int) -> None:
    load = workload(args.edits, args.epochs, args.seed)
    # As a student with memory to spare holds its base, and as PEFT and the Trainer do.
    ours = load_model(model, threads=args.threads, dequantise="once")
    theirs = load_model(model, threads=args.threads)
    enable_packing(ours.model)
    bank = Bank(ours)
    alone = min(4, args.edits)
    tokens = [load.tokens(ours, i) for i in range(args.edits)]
    timed: dict[str, Timed] = {f"(a) bank, {k} slots": Timed() for k in args.slots}
    peft, trainer = Timed(), Timed()
    steps: list[float] = []
    dtype = torch.bfloat16 if ours.compute_dtype == "bfloat16" else torch.float32
    rates: list[float] = []
    for alternation in range(args.alternations):
        for k in args.slots:
            edits = args.edits if k > 1 else alone
            begin_peak()
            before = matmul_rate(dtype)
            seconds, training = by_bank(ours, bank, load, k, edits, args.max_new_tokens)
            timed[f"(a) bank, {k} slots"].add(edits, sum(tokens[:edits]), seconds, training)
            if k == max(args.slots):
                # A machine that others share changes its speed: each run has the floor of its own minutes.
                rates.append(max(before, matmul_rate(dtype)))
        for way, times in ((by_peft, peft), (by_trainer, trainer)):
            for i in range(alone):
                begin_peak()
                begun = time.monotonic()
                training = way(theirs, load, i, args.max_new_tokens)
                times.add(1, tokens[i], time.monotonic() - begun, training)
        steps.append(published_step_seconds(theirs, load, length, 5 if alternation == 0 and not args.quick else 1))
        print(f"alternation {alternation + 1} of {args.alternations}", file=sys.stderr, flush=True)
    rows = len(load.edits[0].documents)
    published = 3600 / (statistics.mean(steps) * rows * args.epochs)
    floors = [rate / (4 * ours.parameters) for rate in rates]
    best = max(timed, key=lambda name: statistics.mean(timed[name].per_hour))
    print(f"{model}, {ours.quantisation}, {ours.compute_dtype}, {platform.machine()}, {args.threads} threads")
    size = statistics.mean(tokens)
    print(f"seed {args.seed}, {args.edits} edits of {rows} rows, {args.epochs} epochs, {size:.0f} tokens each\n")
    print("| way | evaluations an hour | spread | tokens a second, training | peak MiB |\n|---|---|---|---|---|")
    for name, times in {**timed, "(b) PEFT alone": peft, "(c) HF Trainer alone": trainer}.items():
        print(times.line(name))
    print(f"| (d) published, training alone | {published:.2f} | from {len(steps)} timings of steps | | |")
    shown = f"4 x {ours.parameters} at {statistics.mean(rates) / 1e9:.0f} GFLOP/s"
    print(f"| floor: {shown} | | | {statistics.mean(floors):.0f} | |\n")
    mean = statistics.mean(timed[best].per_hour)
    most = timed[f"(a) bank, {max(args.slots)} slots"].tokens_per_s
    figures = {
        "vs_peft": mean / statistics.mean(peft.per_hour),
        "vs_trainer": mean / statistics.mean(trainer.per_hour),
        "vs_published": mean / published,
        "vs_floor": statistics.mean(floor / reached for floor, reached in zip(floors, most, strict=True)),
        "best_k": args.slots[list(timed).index(best)],
        "peak_mib": timed[best].peak_mib,
        "seed": args.seed,
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

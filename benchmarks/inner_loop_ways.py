"""The ways to grade self-edits that benchmarks/inner_loop.py compares, and the workload that they all do."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from benchmarks.peft_loop import fresh_parameters, peft_adapted, train_alone
from student.bank import Bank
from student.bank_step import Limits
from student.capacity import Capacity
from student.evaluation import Ended, Evaluation, QuizSettings
from student.evaluations import EvaluationStore
from student.inner_loop import Row
from student.quiz_room import take_quizzes
from student.room import Guest, Room
from tutelage.domain.evaluation import Bounds, EvaluationKey, EvaluationReport, InnerLoopSettings, QuizResult
from tutelage.domain.self_edit import LossMask, SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.chat import NO_LOSS, document_ids, prompt_ids
from tutelage.models.loading import LoadedModel

WORDS = ("heron", "key", "seal", "salt", "trader", "lamp", "bridge", "town", "winter", "harbour", "bell", "copper")


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


def workload(edits: int, epochs: int, seed: int, rank: int = 16, targets: tuple[str, ...] = ()) -> Workload:
    """Edits of 8 lines and a passage, with 5 questions each; no targets means all linear layers."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    made, quizzes = [], []
    for i in range(edits):
        passage = question_answer(f"What do you know about place {i}?", words(110, 150))
        lines = [question_answer(f"What is {words(3, 6)} of place {i}?", words(4, 12)) for _ in range(8)]
        made.append(SelfEdit((passage, *lines)))
        quizzes.append(Quiz(tuple(Question(f"q{j}", f"Which {words(3, 6)}?", words(1, 3)) for j in range(5))))
    loop = InnerLoopSettings(rank=rank, alpha=2 * rank, epochs=epochs, batch_size=1, target_modules=targets)
    return Workload(tuple(made), tuple(quizzes), loop)


def seconds_of(work: Callable[[], Any]) -> float:
    """With what the work left to do on a GPU."""
    begun = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - begun


def limits_of(bank: Bank) -> Limits:
    """A pass of a CPU is kept small; a GPU wants many tokens at once."""
    return Limits(2048 if bank.device.type == "cpu" else 8192)


def by_bank(
    loaded: LoadedModel, bank: Bank, load: Workload, slots: int, edits: int, max_new_tokens: int
) -> tuple[float, float]:
    """All edits through a room of `slots`, baselines known; seconds of it all, and of its steps."""
    training = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = EvaluationStore(Path(folder), hold_s=0, max_held_bytes=2**40)
        quiz = QuizSettings(max_new_tokens, 64)
        room = Room(bank, store, quiz, Capacity(bank, 2**40, slots, limits_of(bank)))
        waiting = []
        for i in range(edits):
            key = EvaluationKey(
                loaded.name, loaded.revision, loaded.quantisation, "", load.edits[i], load.quizzes[i], Quiz(),
                ("contains",), load.loop, "benchmark", i,
            )  # fmt: skip
            waiting.append(Evaluation(loaded, key, None, bounds=Bounds(), quiz=quiz, store=store))
        asked = {name: sitting for evaluation in waiting for name, sitting in evaluation.missing_baselines().items()}
        known = take_quizzes(bank, list(asked.values()), max_new_tokens=max_new_tokens, batch_size=64)
        for name, answers in zip(asked, known, strict=True):
            assert not isinstance(answers, ArithmeticError)
            store.keep_baseline(name, QuizResult.of(answers))
        ended = 0
        begun = time.monotonic()
        while ended < edits:
            while waiting and room.free:
                room.admit(Guest(waiting.pop(0), lambda: False, lambda progress: None))
            departures = room.advance()
            training += room.last_step_seconds or 0.0
            for _, outcome in departures:
                assert isinstance(outcome, Ended), outcome
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
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch], device=loaded.device)
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch], device=loaded.device
        )
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
    targets = list(load.loop.target_modules) or "all-linear"
    lora = LoraConfig(r=load.loop.rank, lora_alpha=int(load.loop.alpha), target_modules=targets, lora_dropout=0.0)
    model = get_peft_model(loaded.model, lora)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, num_train_epochs=load.loop.epochs, save_strategy="no",
            learning_rate=load.loop.learning_rate, lr_scheduler_type="linear", report_to=[], disable_tqdm=True,
            logging_strategy="no", use_cpu=loaded.device == "cpu", remove_unused_columns=False, seed=edit,
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

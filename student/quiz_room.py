"""The quiz room: the quizzes of many adapters, answered in batches that mix them.

Rows of one sitting stand together, so that an adapter acts on one stretch. What all prompts of a batch begin with is
read once an adapter and shared by its rows; the rest is padded on the left, so that a batch decodes in step. A row
whose answer is complete leaves the batch. Likelihoods of gold answers come from one flat forward pass.
Shape suffixes: B rows, T tokens, N tokens of all rows, M labelled tokens, C those of a chunk, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from student.bank import Bank
from student.bank_adapter import BankAdapter
from student.cross_entropy import CHUNK
from student.heads import last_logits, logits_at
from student.inner_loop import Cancelled, Row
from student.packing import packed_inputs, window_of
from student.quiz import LOGLIK, Sitting, asked, gold_row, graded
from student.routing import Stretch
from tutelage.domain.evaluation import Answer
from tutelage.models.chat import NO_LOSS, prompt_ids, stop_ids

COMPACT_BELOW = 0.75
"""Share of rows still writing below which the others' places are given up."""
LEAST_ROWS = 8
"""Rows below which a batch is not divided between cores."""
BATCH_TOKENS = 16_384
"""Tokens of all rows of the batches under way, with their padding and what they will write; bounds their memory."""
LOGLIK_TOKENS = 2048
"""Tokens of one pass for likelihoods; bounds its memory."""


@dataclass
class _Row:
    sitting: int
    question: int
    adapters: tuple[BankAdapter, ...]
    prompt: list[int]
    written: list[int] = field(default_factory=list)
    ended: bool = False


def take_quizzes(
    bank: Bank,
    sittings: Sequence[Sitting],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> list[tuple[Answer, ...] | ArithmeticError]:
    """The graded answers of each sitting, or its error; raises what `answered` and `graded` raise."""
    given = answered(bank, sittings, max_new_tokens=max_new_tokens, batch_size=batch_size, stop=stop)
    return [graded(sitting, *each) for sitting, each in zip(sittings, given, strict=True)]


def answered(
    bank: Bank,
    sittings: Sequence[Sitting],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> list[tuple[list[str], list[float | None]]]:
    """What was written to each sitting's questions, and how likely the gold answers are; none of it graded yet.

    Raises Cancelled once `stop` says so.
    """
    texts = [[""] * len(sitting.questions) for sitting in sittings]
    logliks: list[list[float | None]] = [[None] * len(sitting.questions) for sitting in sittings]
    rows = [
        _Row(i, j, sitting.adapters, prompt_ids(bank.loaded.tokenizer, asked(question)))
        for i, sitting in enumerate(sittings)
        if sitting.written
        for j, question in enumerate(sitting.questions)
    ]
    rows.sort(key=lambda row: (row.sitting, len(row.prompt), row.question))
    most_tokens = BATCH_TOKENS // bank.workers
    batches = [
        part
        for batch in _evenly(rows, batch_size, bank.workers)
        for part in _within(batch, most_tokens, max_new_tokens)
    ]
    written = bank.side_by_side([partial(generate, bank, batch, max_new_tokens, stop) for batch in batches])
    for row, text in zip(rows, itertools.chain(*written), strict=True):
        texts[row.sitting][row.question] = text
    gold = [
        (i, j, sitting.adapters, gold_row(bank.loaded, question))
        for i, sitting in enumerate(sittings)
        if LOGLIK in sitting.graders
        for j, question in enumerate(sitting.questions)
        if question.answer
    ]
    tokens = sum(len(row.ids) for _, _, _, row in gold)
    # Passes at once share the memory of one.
    parts = _of_tokens(gold, min(LOGLIK_TOKENS // bank.workers, 1 + tokens // bank.workers))
    values = bank.side_by_side([partial(_logliks_unless, stop, bank, part) for part in parts])
    for (i, j, _, _), value in zip(gold, itertools.chain(*values), strict=True):
        logliks[i][j] = value
    return list(zip(texts, logliks, strict=True))


def _evenly(rows: Sequence[_Row], most: int, workers: int) -> list[Sequence[_Row]]:
    """Batches of at most `most` rows and of about one size, as many as keep all workers busy."""
    rounds = math.ceil(len(rows) / (most * workers))
    count = min(rounds * workers, math.ceil(len(rows) / LEAST_ROWS))
    count = max(count, math.ceil(len(rows) / most))
    size = math.ceil(len(rows) / max(1, count))
    return [rows[start : start + size] for start in range(0, len(rows), max(1, size))]


def _within(batch: Sequence[_Row], tokens: int, max_new_tokens: int) -> list[Sequence[_Row]]:
    """The batch in as few parts as hold so many tokens each, padded to the longest; a row alone may have more."""
    parts: list[Sequence[_Row]] = []
    start, longest = 0, 0
    for place, row in enumerate(batch):
        longest = max(longest, len(row.prompt))
        if place > start and (place + 1 - start) * (longest + max_new_tokens) > tokens:
            parts.append(batch[start:place])
            start, longest = place, len(row.prompt)
    return [*parts, batch[start:]]


def _logliks_unless(stop: Callable[[], bool], bank: Bank, part: Sequence[_Gold]) -> list[float]:
    if stop():
        raise Cancelled
    return mean_logliks(bank, [(adapters, row) for _, _, adapters, row in part])


_Gold = tuple[int, int, tuple[BankAdapter, ...], Row]


def _of_tokens(gold: Sequence[_Gold], most: int) -> list[list[_Gold]]:
    parts: list[list[_Gold]] = []
    held = 0
    for item in gold:
        size = len(item[3].ids)
        if not parts or held + size > most:
            parts.append([])
            held = 0
        parts[-1].append(item)
        held += size
    return parts


def stretches_of(owners: Sequence[tuple[tuple[BankAdapter, ...], int]]) -> list[Stretch]:
    """Stretches of consecutive (adapters, tokens); neighbours with the same adapters become one."""
    stretches, at = [], 0
    for adapters, group in itertools.groupby(owners, key=lambda owner: owner[0]):
        size = sum(tokens for _, tokens in group)
        stretches.append(Stretch(at, at + size, adapters))
        at += size
    return stretches


def _common_prefix(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with; each keeps at least one of its own."""
    first, last = min(prompts), max(prompts)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(shared, min(len(prompt) for prompt in prompts) - 1)


@torch.inference_mode()
def generate(bank: Bank, rows: Sequence[_Row], max_new_tokens: int, stop: Callable[[], bool]) -> list[str]:
    """Greedy continuations of one batch, without special tokens; a plain-form answer is one line."""
    tokenizer, device = bank.loaded.tokenizer, bank.device
    ends = stop_ids(tokenizer, bank.loaded.model)
    one_line = not getattr(tokenizer, "chat_template", None)
    shared = _common_prefix([row.prompt for row in rows])
    window = window_of(bank.loaded.model)
    if window is not None and max(len(row.prompt) for row in rows) + max_new_tokens > window:
        # Windows count places, not positions: padding between prefix and row would push the prefix out of them.
        shared = 0
    cache = _read_prefix(bank, rows, shared) if shared else None
    longest = max(len(row.prompt) for row in rows) - shared
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), shared + longest, dtype=torch.long)
    mask_BT[:, :shared] = 1
    for i, row in enumerate(rows):
        own = row.prompt[shared:]
        ids_BT[i, longest - len(own) :] = torch.tensor(own)
        mask_BT[i, shared + longest - len(own) :] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, shared:]
    alive = list(rows)
    for _ in range(max_new_tokens):
        if stop():
            raise Cancelled
        with bank.routed(stretches_of([(row.adapters, ids_BT.shape[1]) for row in alive])):
            inputs = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
            logits_BV, cache = last_logits(bank.loaded.model, {**inputs, "past_key_values": cache, "use_cache": True})
        chosen_B = logits_BV.argmax(-1)
        for row, token in zip(alive, chosen_B.tolist(), strict=True):
            if row.ended:
                continue
            if token in ends:
                row.ended = True
                continue
            row.written.append(token)
            row.ended = one_line and "\n" in tokenizer.decode(row.written).lstrip("\n")
        writing = [i for i, row in enumerate(alive) if not row.ended]
        if not writing:
            break
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1
        if len(writing) <= COMPACT_BELOW * len(alive):
            kept_B = torch.tensor(writing, device=device)
            cache.batch_select_indices(kept_B)
            mask_BT, positions_BT, chosen_B = mask_BT[kept_B], positions_BT[kept_B], chosen_B[kept_B]
            alive = [alive[i] for i in writing]
        ids_BT = chosen_B[:, None]
    texts = [tokenizer.decode(row.written, skip_special_tokens=True).strip() for row in rows]
    return [text.split("\n", 1)[0].strip() if one_line else text for text in texts]


def _read_prefix(bank: Bank, rows: Sequence[_Row], shared: int) -> Any:
    """The cache of the first `shared` tokens for each row, computed once for each set of adapters."""
    groups = [(adapters, list(group)) for adapters, group in itertools.groupby(rows, key=lambda row: row.adapters)]
    prefix_GT = torch.tensor([rows[0].prompt[:shared]] * len(groups), device=bank.device)
    with bank.routed(stretches_of([(adapters, shared) for adapters, _ in groups])):
        _, cache = last_logits(bank.loaded.model, {"input_ids": prefix_GT, "use_cache": True})
    owners = [index for index, (_, group) in enumerate(groups) for _ in group]
    cache.batch_select_indices(torch.tensor(owners, device=bank.device))
    return cache


@torch.inference_mode()
def mean_logliks(bank: Bank, rows: Sequence[tuple[tuple[BankAdapter, ...], Row]]) -> list[float]:
    """Mean log-likelihood of each row's labels, nats a token; one forward pass."""
    lengths = [len(row.ids) for _, row in rows]
    ids_N = torch.tensor([token for _, row in rows for token in row.ids])
    targets_N = torch.tensor([label for _, row in rows for label in (*row.labels[1:], NO_LOSS)])
    owners_N = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
    at_M = (targets_N != NO_LOSS).nonzero().squeeze(1)
    device = bank.device
    with bank.routed(stretches_of([(a, len(row.ids)) for a, row in rows])):
        logits_MV = logits_at(bank.loaded.model, packed_inputs(ids_N, lengths, device), at_M.to(device))
    targets_M = targets_N[at_M].to(device)
    # In float32, with their logarithms, logits take four times what they take in bfloat16: only those of a chunk.
    losses_M = torch.cat(
        [
            torch.nn.functional.cross_entropy(logits_CV.float(), targets_C, reduction="none")
            for logits_CV, targets_C in zip(logits_MV.split(CHUNK), targets_M.split(CHUNK), strict=True)
        ]
    ).cpu()
    sums = torch.zeros(len(rows)).index_add_(0, owners_N[at_M], losses_M)
    counts = torch.zeros(len(rows)).index_add_(0, owners_N[at_M], torch.ones(len(at_M)))
    return [float(value) for value in -sums / counts]

"""A quiz: greedy answers to all questions in batches, and the likelihood of the gold answers.

Questions are sorted by length and padded on the left, so that a batch decodes in step; a row that has ended leaves the
batch's attention but keeps its place. Shape suffixes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import nn

from student.inner_loop import Cancelled, Row
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.evaluation import Answer
from tutelage.domain.self_edit import LossMask, question_answer
from tutelage.domain.task import Question
from tutelage.grading import STRING_GRADERS, grade
from tutelage.models.chat import NO_LOSS, document_ids, prompt_ids, stop_ids
from tutelage.models.loading import LoadedModel

LOGLIK = "loglik"
GRADERS: tuple[str, ...] = (*STRING_GRADERS, LOGLIK)


def asked(question: Question) -> str:
    """The text that is put to the model: the topic precedes the question unless the question names it already."""
    if question.topic and question.topic.casefold() not in question.text.casefold():
        return f"{question.topic}: {question.text}"
    return question.text


def check_quiz(loaded: LoadedModel, questions: Sequence[Question], max_new_tokens: int, field: str) -> None:
    """Raises InvalidInput naming each question that, with its answer, does not fit the model's context."""
    violations = []
    prefix = f"{field}." if field else ""
    for i, question in enumerate(questions):
        prompt = len(prompt_ids(loaded.tokenizer, asked(question)))
        gold = 0
        if question.answer:
            row = _gold_row(loaded, question)
            gold = row.supervised
            if not gold:
                violations.append(
                    FieldViolation(f"{prefix}questions[{i}].answer", question.answer, "text with a token")
                )
        needed = prompt + max(max_new_tokens, gold)
        if needed > loaded.context_length:
            allowed = f"at most {loaded.context_length} tokens with {max(max_new_tokens, gold)} of an answer"
            violations.append(FieldViolation(f"{prefix}questions[{i}].text", f"{prompt} tokens", allowed))
    if violations:
        raise InvalidInput(violations)


def _gold_row(loaded: LoadedModel, question: Question) -> Row:
    ids, labels = document_ids(loaded.tokenizer, question_answer(asked(question), question.answer), LossMask.COMPLETION)
    ends = stop_ids(loaded.tokenizer, loaded.model)
    # What is measured is the answer; the end of the turn after it says nothing of knowledge.
    while labels and (labels[-1] == NO_LOSS or labels[-1] in ends):
        ids.pop()
        labels.pop()
    return Row(tuple(ids), tuple(labels))


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, longest - len(row) :] = torch.tensor(row)
        mask_BT[i, longest - len(row) :] = 1
    return ids_BT.to(device), mask_BT.to(device)


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: threading.Event,
) -> list[str]:
    """Greedy continuations of one batch of prompts, without special tokens; a plain-form answer is one line."""
    tokenizer, device = loaded.tokenizer, torch.device(loaded.device)
    ends = stop_ids(tokenizer, loaded.model)
    one_line = not getattr(tokenizer, "chat_template", None)
    ids_BT, mask_BT = _left_padded(prompts, device)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    written: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    cache = None
    for _ in range(max_new_tokens):
        if stop.is_set():
            raise Cancelled
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen_B = output.logits[:, -1].argmax(-1)
        for i, token in enumerate(chosen_B.tolist()):
            if ended[i]:
                continue
            if token in ends:
                ended[i] = True
                continue
            written[i].append(token)
            if one_line and "\n" in tokenizer.decode(written[i]).lstrip("\n"):
                ended[i] = True
        if all(ended):
            break
        ids_BT = chosen_B[:, None]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(prompts), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in written]
    return [text.split("\n", 1)[0].strip() if one_line else text for text in texts]


@torch.inference_mode()
def mean_loglik(model: nn.Module, rows: Sequence[Row], device: torch.device) -> list[float]:
    """Mean log-likelihood of each row's labels, nats a token; one forward pass."""
    longest = max(len(row.ids) for row in rows)
    ids_BT, mask_BT = torch.zeros(2, len(rows), longest, dtype=torch.long)
    labels_BT = torch.full((len(rows), longest), NO_LOSS, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row.ids)] = torch.tensor(row.ids)
        mask_BT[i, : len(row.ids)] = 1
        labels_BT[i, : len(row.ids)] = torch.tensor(row.labels)
    targets_BT = labels_BT[:, 1:].to(device)
    kept_K = (targets_BT != NO_LOSS).any(dim=0).nonzero().squeeze(1)
    output = model(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False, logits_to_keep=kept_K
    )
    targets_BK = targets_BT[:, kept_K]
    losses_BK = nn.functional.cross_entropy(
        output.logits.float().transpose(1, 2), targets_BK, ignore_index=NO_LOSS, reduction="none"
    )
    counts_B = (targets_BK != NO_LOSS).sum(1)
    return [float(value) for value in (-losses_BK.sum(1) / counts_B).tolist()]


def take_quiz(
    loaded: LoadedModel,
    model: nn.Module,
    questions: Sequence[Question],
    graders: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: threading.Event,
) -> tuple[Answer, ...]:
    """Answers and scores in the order of the questions; a question without a gold answer gets no scores.

    Nothing is generated when only `loglik` is asked for. A likelihood that is no number raises ArithmeticError.
    """
    texts = [""] * len(questions)
    if not graders or any(name != LOGLIK for name in graders):
        prompts = [prompt_ids(loaded.tokenizer, asked(question)) for question in questions]
        for batch in _batches([len(prompt) for prompt in prompts], batch_size):
            answers = generate(loaded, model, [prompts[i] for i in batch], max_new_tokens, stop)
            for i, text in zip(batch, answers, strict=True):
                texts[i] = text
    logliks: dict[int, float] = {}
    if LOGLIK in graders:
        scored = [i for i, question in enumerate(questions) if question.answer]
        rows = [_gold_row(loaded, questions[i]) for i in scored]
        for batch in _batches([len(row.ids) for row in rows], batch_size):
            if stop.is_set():
                raise Cancelled
            values = mean_loglik(model, [rows[j] for j in batch], torch.device(loaded.device))
            logliks.update({scored[j]: value for j, value in zip(batch, values, strict=True)})
    if not all(math.isfinite(value) for value in logliks.values()):
        raise ArithmeticError("the likelihood of an answer is not a finite number")
    answers_out = []
    for i, question in enumerate(questions):
        scores = {}
        for name in graders if question.answer else ():
            gold = (question.answer, *question.aliases)
            known = f"{question.topic} {question.text}"
            scores[name] = logliks[i] if name == LOGLIK else grade(name, texts[i], gold, known)
        answers_out.append(Answer(question.id, texts[i], scores))
    return tuple(answers_out)

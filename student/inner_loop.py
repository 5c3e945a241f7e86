"""The inner loop: AdamW on the fresh adapter over an edit's documents.

Micro-batches are shuffled each epoch by a seeded generator. Rows of very different length go through in parts, each
padded to its longest; pads are masked and carry no loss. The loss is the mean over the micro-batch's supervised tokens,
and logits are computed only where a label is. Shape suffixes: B rows, T tokens, K positions with a label in some row,
N labelled tokens of all rows, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from student.adapted import AdaptedModel
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Rejection, RejectionReason, Schedule
from tutelage.models.chat import NO_LOSS

EXPLODED = 4.0
"""A loss this many times above both its start and that of a uniform guess has exploded."""


WORTH_A_PASS = 96
"""Pad tokens whose saving pays for one more pass over the weights (about what a pass costs beside its tokens)."""


class Cancelled(Exception):
    """The evaluation was told to stop; nothing of it is kept."""


@dataclass(frozen=True)
class Row:
    """A training document in ids; labels are -100 where no loss is."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> int:
        # The first token is never predicted.
        return sum(label != NO_LOSS for label in self.labels[1:])


@dataclass(frozen=True)
class Trained:
    """What the loop cost."""

    steps: int
    tokens: int
    supervised_tokens: int
    first_loss: float
    last_loss: float
    seconds: float


Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""


def learning_rate_at(step: int, steps: int, settings: InnerLoopSettings) -> float:
    """The learning rate of the 0-based `step`: whole at the first, towards 0 after the last (linear and cosine)."""
    done = step / steps
    if settings.schedule is Schedule.LINEAR:
        return settings.learning_rate * (1 - done)
    if settings.schedule is Schedule.COSINE:
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate


def micro_batches(rows: Sequence[Row], settings: InnerLoopSettings, seed: int) -> list[list[Row]]:
    """All micro-batches of all epochs, in training order."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), settings.batch_size):
            batches.append([rows[i] for i in order[start : start + settings.batch_size]])
    return batches


def _padded(batch: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(len(row.ids) for row in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    labels_BT = torch.full((len(batch), longest), NO_LOSS, dtype=torch.long)
    mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    for i, row in enumerate(batch):
        ids_BT[i, : len(row.ids)] = torch.tensor(row.ids)
        labels_BT[i, : len(row.ids)] = torch.tensor(row.labels)
        mask_BT[i, : len(row.ids)] = 1
    return ids_BT.to(device), labels_BT.to(device), mask_BT.to(device)


def of_similar_length(batch: Sequence[Row]) -> list[list[Row]]:
    """The micro-batch in parts that are worth a pass of their own: longest first, little padding in each."""
    parts: list[list[Row]] = []
    rows = sorted(batch, key=lambda row: len(row.ids), reverse=True)
    for index, row in enumerate(rows):
        saved = (len(parts[-1][0].ids) - len(row.ids)) * (len(rows) - index) if parts else 0
        if not parts or saved > WORTH_A_PASS:
            parts.append([])
        parts[-1].append(row)
    return parts


def summed_loss(model: nn.Module, rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """Cross-entropy summed over the supervised tokens of rows padded to the longest, nats, float32."""
    ids_BT, labels_BT, mask_BT = _padded(rows, device)
    targets_BT = labels_BT[:, 1:]
    labelled_BT = targets_BT != NO_LOSS
    if _plain_head(model):
        # The head only sees labelled positions: its logits are much of the memory of a step on a small model.
        decoder, head = model.get_submodule("model"), model.get_submodule("lm_head")
        hidden_BTD = decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        logits_NV = head(hidden_BTD[:, :-1][labelled_BT])
        return nn.functional.cross_entropy(logits_NV.float(), targets_BT[labelled_BT], reduction="sum")
    positions_K = labelled_BT.any(dim=0).nonzero().squeeze(1)
    output = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, logits_to_keep=positions_K)
    targets_BK = targets_BT[:, positions_K]
    return nn.functional.cross_entropy(
        output.logits.float().flatten(0, 1), targets_BK.flatten(), ignore_index=NO_LOSS, reduction="sum"
    )


def _plain_head(model: nn.Module) -> bool:
    """Whether logits are nothing but `lm_head` of the decoder's last hidden state; some families scale or cap them."""
    changed = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    plain = all(getattr(model.config, name, None) in (None, 1.0) for name in changed)
    return plain and {"model", "lm_head"} <= {name for name, _ in model.named_children()}


def exploded_above(first_loss: float, vocabulary: int) -> float:
    """The loss, in nats, above which a loop that began at `first_loss` counts as diverged."""
    return EXPLODED * max(first_loss, math.log(vocabulary))


def diverged(field: str, value: float, step: int, allowed: str) -> Rejection:
    return Rejection(
        RejectionReason.DIVERGED,
        field=field,
        value=f"{value:g}",
        allowed=allowed,
        message=f"training diverged at step {step + 1}: {field} {value:g}",
    )


def train(
    adapted: AdaptedModel,
    rows: Sequence[Row],
    settings: InnerLoopSettings,
    seed: int,
    *,
    stop: threading.Event,
    progress: Progress | None = None,
) -> Trained | Rejection:
    """Trains the fresh adapter in place; a rejection when the loss explodes or is no number.

    Rows without a supervised token are left out. Raises Cancelled between steps once `stop` is set.
    """
    rows = [row for row in rows if row.supervised]
    if not rows:
        return Rejection(RejectionReason.EMPTY, field="documents", message="no token of the self-edit carries loss")
    started = time.monotonic()
    parameters = adapted.trainable()
    device = torch.device(adapted.loaded.device)
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=device.type == "cuda"
    )
    batches = micro_batches(rows, settings, seed)
    vocabulary = adapted.loaded.model.get_output_embeddings().weight.shape[0]
    first = last = 0.0
    for step, batch in enumerate(batches):
        if stop.is_set():
            raise Cancelled
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, len(batches), settings)
        optimiser.zero_grad(set_to_none=True)
        supervised = sum(row.supervised for row in batch)
        last = 0.0
        for part in of_similar_length(batch):
            # The parts' shares add up to the micro-batch's mean, and so do their gradients.
            share = summed_loss(adapted.model, part, device) / supervised
            share.backward()
            last += float(share.detach())
        first = last if step == 0 else first
        limit = exploded_above(first, vocabulary)
        if not last <= limit:
            return diverged("loss", last, step, f"at most {limit:.1f}")
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        if not bool(torch.isfinite(norm)):
            return diverged("gradient norm", float(norm), step, "a finite number")
        optimiser.step()
        if progress is not None:
            progress(step + 1, len(batches), last)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        return diverged("weights", math.nan, len(batches) - 1, "finite numbers")
    return Trained(
        steps=len(batches),
        tokens=sum(len(row.ids) for batch in batches for row in batch),
        supervised_tokens=sum(row.supervised for batch in batches for row in batch),
        first_loss=first,
        last_loss=last,
        seconds=time.monotonic() - started,
    )

"""One step of many slots: their micro-batches through as few forward and backward passes as the memory allows.

The loss of a pass is the sum of its slots' shares of their mean losses. A slot's tokens only meet its own adapter, so
the sum keeps the gradients apart, and each slot learns exactly what it would learn alone; a micro-batch larger than a
pass adds its gradient up over several. Logits are computed only where a label is, a chunk at a time.
Shape suffixes: N tokens, T those of one row, M labelled tokens, C those of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from student.bank import Bank
from student.checkpointing import checkpointed
from student.cross_entropy import cross_entropy
from student.heads import hidden_at, logits_at, plain_head
from student.inner_loop import Row
from student.lower_layers import above, below
from student.packing import packed_inputs
from student.routing import Stretch
from student.slot import Slot
from tutelage.domain.self_edit import Rejection
from tutelage.models.chat import NO_LOSS


@dataclass(frozen=True)
class Limits:
    """What one pass may take."""

    tokens: int
    """Most tokens; a longer row is a pass of its own."""
    kept_tokens: int = 2**31
    """Tokens above which activations are not kept but computed again in the backward pass."""


@dataclass(frozen=True)
class Part:
    """Rows of one slot's micro-batch that are in one pass."""

    slot: Slot
    rows: tuple[Row, ...]
    last: bool
    """Whether the micro-batch ends with it."""

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)


class StepFailed(Exception):
    """A fault of the machine in the step of these slots; their gradients are as before it."""

    def __init__(self, slots: list[Slot], error: Exception) -> None:
        super().__init__(str(error))
        self.slots, self.error = slots, error


def passes_of(slots: Sequence[Slot], max_tokens: int) -> list[list[Part]]:
    """The micro-batches in the slots' order, in passes of at most `max_tokens`; a longer row is a pass of its own.

    Slots whose lowest adapted layers differ never meet in a pass.
    """
    passes: list[list[Part]] = []
    first_layers = list(dict.fromkeys(slot.first_layer for slot in slots))
    for first_layer in first_layers:
        held = max_tokens + 1
        for slot in (slot for slot in slots if slot.first_layer == first_layer):
            rows: list[Row] = []
            for i, row in enumerate(slot.batch):
                if held + len(row.ids) > max_tokens:
                    if rows:
                        passes[-1].append(Part(slot, tuple(rows), last=False))
                        rows = []
                    passes.append([])
                    held = 0
                rows.append(row)
                held += len(row.ids)
                if i == len(slot.batch) - 1:
                    passes[-1].append(Part(slot, tuple(rows), last=True))
    return passes


Ends = list[tuple[Slot, Rejection | None]]


def step(bank: Bank, slots: Sequence[Slot], limits: Limits) -> Iterator[tuple[Slot, Rejection | None]]:
    """Takes one step in every slot; with a rejection for each slot that diverged.

    Shares of the slots step on the cores at once. Raises StepFailed once those that took their step are told.
    """
    shares = _shares(bank, slots, limits)
    each = _each(limits, len(shares))
    failure: StepFailed | None = None
    for ends, failed in bank.side_by_side([partial(_step_in_turn, bank, share, each) for share in shares]):
        yield from ends
        failure = failed or failure
    if failure is not None:
        raise failure


def _shares(bank: Bank, slots: Sequence[Slot], limits: Limits) -> list[list[Slot]]:
    """The slots, spread evenly by their tokens over the bank's workers.

    All in one share where layers of the one model are exchanged for the step.
    """
    longest = max(len(row.ids) for slot in slots for row in slot.batch)
    alone = any(slot.first_layer for slot in slots) or longest * bank.workers > limits.kept_tokens
    shares: list[list[Slot]] = [[] for _ in range(1 if alone else min(bank.workers, len(slots)))]
    for slot in sorted(slots, key=lambda slot: _tokens([slot]), reverse=True):
        min(shares, key=_tokens).append(slot)
    return shares


def _each(limits: Limits, shares: int) -> Limits:
    """What a pass of one share may take while others are under way."""
    if shares == 1:
        return limits
    kept_tokens = max(1, limits.kept_tokens // shares)
    # Layers are told to compute again for all threads, so no pass may ask for it; `_shares` left out longer rows.
    return Limits(max(1, min(limits.tokens // shares, kept_tokens)), kept_tokens)


def _tokens(slots: Sequence[Slot]) -> int:
    return sum(len(row.ids) for slot in slots for row in slot.batch)


def _step_in_turn(bank: Bank, slots: Sequence[Slot], limits: Limits) -> tuple[Ends, StepFailed | None]:
    ends: Ends = []
    losses: dict[Slot, float] = {}
    for parts in passes_of(slots, limits.tokens):
        try:
            shares = backward(bank, parts, limits)
        except Exception as error:
            return ends, _given_up([part.slot for part in parts], parts, error)
        for i, (part, share) in enumerate(zip(parts, shares, strict=True)):
            losses[part.slot] = losses.get(part.slot, 0.0) + share
            if not part.last:
                continue
            try:
                ends.append((part.slot, part.slot.learn(losses[part.slot])))
            except Exception as error:
                # Its neighbours take their step anew.
                return ends, _given_up([part.slot], parts[i:], error)
    return ends, None


def _given_up(slots: list[Slot], parts: Sequence[Part], error: Exception) -> StepFailed:
    for part in parts:
        part.slot.forget_gradient()
    failure = StepFailed(slots, error)
    failure.__cause__ = error
    return failure


def backward(bank: Bank, parts: Sequence[Part], limits: Limits) -> list[float]:
    """Adds the gradient of each part's share of its slot's mean loss to the adapter; the shares, in nats."""
    rows = [row for part in parts for row in part.rows]
    stretches = []
    at = 0
    for part in parts:
        stretches.append(Stretch(at, at + part.tokens, part.slot.adapters))
        at += part.tokens
    lengths = [len(row.ids) for row in rows]
    owners = [index for index, part in enumerate(parts) for _ in part.rows]
    supervised = [sum(row.supervised for row in part.slot.batch) for part in parts]
    ids_N = torch.tensor([token for row in rows for token in row.ids])
    # A token's target is the label after it; a row's last token has none.
    targets_N = torch.tensor([label for row in rows for label in (*row.labels[1:], NO_LOSS)])
    owners_N = torch.repeat_interleave(torch.tensor(owners), torch.tensor(lengths))
    at_M = (targets_N != NO_LOSS).nonzero().squeeze(1)
    owners_M = owners_N[at_M]
    weights_M = 1.0 / torch.tensor(supervised, dtype=torch.float32)[owners_M]
    inputs = packed_inputs(ids_N, lengths, bank.device)
    model, first = bank.loaded.model, parts[0].slot.first_layer
    _remember_lower(bank, parts, first)
    with ExitStack() as stack:
        if first:
            kept = [part.slot.lower[row] for part in parts for row in part.rows]
            stack.enter_context(above(model, first, kept))
        if at > limits.kept_tokens:
            stack.enter_context(checkpointed(model))
        stack.enter_context(bank.routed(stretches, training=True))
        losses_M = _backward(bank, inputs, at_M, targets_N[at_M], weights_M)
    sums = torch.zeros(len(parts), dtype=torch.float64).index_add_(0, owners_M, (losses_M * weights_M).double())
    return [float(value) for value in sums]


def _remember_lower(bank: Bank, parts: Sequence[Part], first: int) -> None:
    """Computes what enters the lowest adapted layer, for rows that are seen for the first time."""
    missing = [(part.slot, row) for part in parts for row in part.rows if first and row not in part.slot.lower]
    if not missing:
        return
    stretches, at = [], 0
    for slot, row in missing:
        stretches.append(Stretch(at, at + len(row.ids), slot.adapters))
        at += len(row.ids)
    lengths = [len(row.ids) for _, row in missing]
    ids_N = torch.tensor([token for _, row in missing for token in row.ids])
    with bank.routed(stretches):
        hidden_ND = below(bank.loaded.model, first, packed_inputs(ids_N, lengths, bank.device))
    for (slot, row), hidden_TD in zip(missing, hidden_ND.split(lengths), strict=True):
        slot.lower[row] = hidden_TD.clone()


def _backward(
    bank: Bank, inputs: dict[str, Any], at_M: torch.Tensor, targets_M: torch.Tensor, weights_M: torch.Tensor
) -> torch.Tensor:
    """Back-propagates the weighted sum of the tokens' cross-entropies; the cross-entropies, on the CPU, float32."""
    model, device = bank.loaded.model, bank.device
    at_M, targets_M, weights_M = at_M.to(device), targets_M.to(device), weights_M.to(device)
    if not plain_head(model):
        logits_MV = logits_at(model, inputs, at_M).float()
        losses_M = nn.functional.cross_entropy(logits_MV, targets_M, reduction="none")
        (losses_M * weights_M).sum().backward()
        return losses_M.detach().cpu()
    hidden_MD = hidden_at(model, inputs, at_M)
    losses_M, gradient_MD = cross_entropy(model.get_submodule("lm_head"), hidden_MD, targets_M, weights_M)
    hidden_MD.backward(gradient_MD)
    return losses_M.cpu()

"""One step of many slots: their micro-batches through one forward and one backward pass.

The loss is the sum of the slots' mean losses. A slot's tokens only meet its own adapter, so the sum keeps the gradients
apart, and each slot learns exactly what it would learn alone. Logits are computed only where a label is, a chunk at a
time. Shape suffixes: N tokens, M labelled tokens, C those of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from student.bank import Bank, Stretch
from student.heads import hidden_at, logits_at, plain_head
from student.inner_loop import Row
from student.packing import no_mask, packed_rows, positions_of
from student.slot import Slot
from tutelage.domain.self_edit import Rejection
from tutelage.models.chat import NO_LOSS

CHUNK = 256
"""Labelled tokens whose logits are held at a time."""


class StepFailed(Exception):
    """A fault of the machine in the step of these slots; their gradients are as before it."""

    def __init__(self, slots: list[Slot], error: Exception) -> None:
        super().__init__(str(error))
        self.slots, self.error = slots, error


def groups_of(slots: Sequence[Slot], max_tokens: int) -> list[list[Slot]]:
    """The slots in their order, in groups whose micro-batches hold at most `max_tokens`; one slot may be a group."""
    groups: list[list[Slot]] = []
    held = 0
    for slot in slots:
        size = sum(len(row.ids) for row in slot.batch)
        if not groups or held + size > max_tokens:
            groups.append([])
            held = 0
        groups[-1].append(slot)
        held += size
    return groups


def step(bank: Bank, slots: Sequence[Slot], max_tokens: int) -> Iterator[tuple[Slot, Rejection | None]]:
    """Takes one step in every slot, as it is iterated; with a rejection for each slot that diverged.

    Raises StepFailed; the slots that came before it have taken their step.
    """
    for group in groups_of(slots, max_tokens):
        try:
            losses = backward(bank, group)
        except Exception as error:
            for slot in group:
                slot.forget_gradient()
            raise StepFailed(group, error) from error
        for slot, loss in zip(group, losses, strict=True):
            yield slot, slot.learn(loss)


def backward(bank: Bank, slots: Sequence[Slot]) -> list[float]:
    """Adds the gradient of each slot's mean loss to its adapter; the mean losses, in nats."""
    rows: list[Row] = []
    owners: list[int] = []
    stretches = []
    at = 0
    for index, slot in enumerate(slots):
        rows.extend(slot.batch)
        owners.extend([index] * len(slot.batch))
        size = sum(len(row.ids) for row in slot.batch)
        stretches.append(Stretch(at, at + size, slot.adapters))
        at += size
    lengths = [len(row.ids) for row in rows]
    supervised = [sum(row.supervised for row in slot.batch) for slot in slots]
    ids_N = torch.tensor([token for row in rows for token in row.ids])
    # A token's target is the label after it; a row's last token has none.
    targets_N = torch.tensor([label for row in rows for label in (*row.labels[1:], NO_LOSS)])
    owners_N = torch.repeat_interleave(torch.tensor(owners), torch.tensor(lengths))
    at_M = (targets_N != NO_LOSS).nonzero().squeeze(1)
    owners_M = owners_N[at_M]
    weights_M = 1.0 / torch.tensor(supervised, dtype=torch.float32)[owners_M]
    device = bank.device
    with bank.routed(stretches, training=True), packed_rows(lengths):
        losses_M = _backward(bank, ids_N, positions_of(lengths, device), at_M, targets_N[at_M], weights_M)
    sums = torch.zeros(len(slots), dtype=torch.float64).index_add_(0, owners_M, (losses_M * weights_M).double())
    return [float(value) for value in sums]


def _backward(
    bank: Bank,
    ids_N: torch.Tensor,
    positions_1N: torch.Tensor,
    at_M: torch.Tensor,
    targets_M: torch.Tensor,
    weights_M: torch.Tensor,
) -> torch.Tensor:
    """Back-propagates the weighted sum of the tokens' cross-entropies; the cross-entropies, on the CPU, float32."""
    model, device = bank.loaded.model, bank.device
    inputs = {"input_ids": ids_N.unsqueeze(0).to(device), "position_ids": positions_1N, "use_cache": False}
    inputs["attention_mask"] = no_mask(device)
    at_M, targets_M, weights_M = at_M.to(device), targets_M.to(device), weights_M.to(device)
    if not plain_head(model):
        logits_MV = logits_at(model, inputs, at_M).float()
        losses_M = nn.functional.cross_entropy(logits_MV, targets_M, reduction="none")
        (losses_M * weights_M).sum().backward()
        return losses_M.detach().cpu()
    hidden_MD = hidden_at(model, inputs, at_M)
    losses, gradients = [], []
    for chunk in torch.arange(len(at_M), device=device).split(CHUNK):
        hidden_CD = hidden_MD.detach()[chunk].requires_grad_()
        logits_CV = model.get_submodule("lm_head")(hidden_CD).float()
        losses_C = nn.functional.cross_entropy(logits_CV, targets_M[chunk], reduction="none")
        (losses_C * weights_M[chunk]).sum().backward()
        assert hidden_CD.grad is not None
        losses.append(losses_C.detach())
        gradients.append(hidden_CD.grad)
    hidden_MD.backward(torch.cat(gradients))
    return torch.cat(losses).cpu()

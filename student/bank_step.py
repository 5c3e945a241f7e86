"""One step of many slots: their micro-batches through one forward and one backward pass.

The loss is the sum of the slots' mean losses. A slot's tokens only meet its own adapter, so the sum keeps the gradients
apart, and each slot learns exactly what it would learn alone. Logits are computed only where a label is, a chunk at a
time. Shape suffixes: N tokens, M labelled tokens, C those of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from student.bank import Bank, Stretch
from student.inner_loop import Row
from student.packing import packed_rows, positions_of
from student.slot import Slot
from tutelage.domain.self_edit import Rejection
from tutelage.models.chat import NO_LOSS

CHUNK = 256
"""Labelled tokens whose logits are held at a time."""


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


def step(bank: Bank, slots: Sequence[Slot], max_tokens: int) -> dict[Slot, Rejection | None]:
    """Takes one step in every slot; a rejection for each that diverged."""
    ended: dict[Slot, Rejection | None] = {}
    for group in groups_of(slots, max_tokens):
        for slot, loss in zip(group, backward(bank, group), strict=True):
            ended[slot] = slot.learn(loss)
    return ended


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
    # Attention is by row and needs no mask; one that has all four dimensions is passed on as it is, and ignored there.
    inputs["attention_mask"] = torch.zeros(1, 1, 1, 1, device=device)
    at_M, targets_M, weights_M = at_M.to(device), targets_M.to(device), weights_M.to(device)
    if not plain_head(model):
        logits_MV = model(**inputs, logits_to_keep=at_M).logits[0].float()
        losses_M = nn.functional.cross_entropy(logits_MV, targets_M, reduction="none")
        (losses_M * weights_M).sum().backward()
        return losses_M.detach().cpu()
    hidden_MD = model.get_submodule("model")(**inputs).last_hidden_state[0, at_M]
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


def plain_head(model: nn.Module) -> bool:
    """Whether logits are nothing but `lm_head` of the decoder's last hidden state; some families scale or cap them."""
    changed = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    plain = all(getattr(model.config, name, None) in (None, 1.0) for name in changed)
    return plain and {"model", "lm_head"} <= {name for name, _ in model.named_children()}

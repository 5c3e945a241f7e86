"""How many slots fit: what one slot and one step take, against the memory that is free.

Four bytes of value, gradient and two moments of AdamW for each parameter of an adapter; for a step, what its tokens
leave behind for the backward pass.
"""

from __future__ import annotations

from pathlib import Path

import torch

from student.bank import Bank
from student.config import StudentSettings

MOST = 16
"""Slots chosen without being asked; more hardly pay, and each waits for the others' steps."""
SHARE = 0.6
"""Of the free memory that the bank may take; the rest is for quizzes and for whoever else lives here."""
TYPICAL_RANK = 32


def slot_bytes(bank: Bank, rank: int) -> int:
    """Of one training slot whose adapter of this rank is on all projections."""
    return 16 * rank * sum(p.in_features + p.out_features for p in bank.projections)


def step_bytes(bank: Bank, tokens: int) -> int:
    """Of the activations of one step of so many tokens, and of the logits of one chunk."""
    element = 4 if bank.loaded.compute_dtype == "float32" else 2
    # Each projection's input and output, and about as much again in norms, rotations and products between them.
    widths = sum(p.in_features + p.out_features for p in bank.projections)
    vocabulary = bank.loaded.model.get_output_embeddings().weight.shape[0]
    return tokens * widths * element * 2 + 256 * vocabulary * 4 * 4


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def slots_for(bank: Bank, settings: StudentSettings) -> int:
    """The operator's number, 1 for a deterministic student, else what fits into the free memory."""
    if settings.deterministic:
        return 1
    if settings.slots is not None:
        return settings.slots
    room = SHARE * free_bytes(bank.device) - step_bytes(bank, settings.max_step_tokens)
    rank = min(TYPICAL_RANK, settings.bounds.max_rank)
    return max(1, min(MOST, int(room / slot_bytes(bank, rank))))

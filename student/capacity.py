"""What training takes of the device's memory, predicted, against what it may take.

Four bytes of value, gradient and two moments of AdamW for each parameter of an adapter; for a pass, what its tokens
leave behind for the backward pass. From that follow how many slots there are, when activations are computed again in
place of being kept, and which evaluation is too large for the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from student.bank import Bank
from student.bank_adapter import targeted
from student.bank_step import Limits
from student.config import StudentSettings
from student.cross_entropy import CHUNK
from student.inner_loop import Row
from student.lower_layers import first_adapted
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.models.memory import free_bytes

MOST = 16
"""Slots chosen without being asked; more hardly pay, and each waits for the others' steps."""
SHARE = 0.6
"""Of the free memory that training may take; the rest is for quizzes and for whoever else lives here."""
TYPICAL_RANK = 32


def slot_bytes(bank: Bank, settings: InnerLoopSettings) -> int:
    """Of the adapter, its gradient and its optimiser in one slot."""
    first = first_adapted(bank.loaded.model, settings.adapt_last_layers)
    targets = targeted(bank.projections, settings.target_modules, first)
    return 16 * settings.rank * sum(p.in_features + p.out_features for p in targets)


def pass_bytes(bank: Bank, tokens: int, *, kept: bool = True) -> int:
    """Of the activations of one pass of so many tokens, and of the logits of one chunk.

    Without `kept` each layer keeps its input only, and one layer at a time all of it.
    """
    element = 4 if bank.loaded.compute_dtype == "float32" else 2
    # Where a model has more than text in it, its layers are described one level down.
    config = bank.loaded.model.config.get_text_config()
    layers = config.num_hidden_layers
    # Each projection's input and output, and about as much again in norms, rotations and products between them.
    widths = 2 * sum(p.in_features + p.out_features for p in bank.projections)
    if not kept:
        widths = widths // layers + config.hidden_size * layers
    vocabulary = bank.loaded.model.get_output_embeddings().weight.shape[0]
    return tokens * widths * element + CHUNK * vocabulary * 4 * 4


@dataclass(frozen=True)
class Capacity:
    """What training on this bank may take."""

    bank: Bank
    budget: int
    """Bytes, for slots and passes together."""
    slots: int
    limits: Limits

    @classmethod
    def of(cls, bank: Bank, settings: StudentSettings) -> Capacity:
        """By the operator's numbers, and by the memory that is free now where there are none."""
        free = free_bytes(bank.device)
        given = settings.max_training_gib
        budget = int(SHARE * free if given is None else given * 2**30)
        # Half of it at most for a pass, so that there is room for slots.
        a_token = pass_bytes(bank, 1) - pass_bytes(bank, 0)
        kept_tokens = max(1, (budget // 2 - pass_bytes(bank, 0)) // a_token)
        limits = Limits(settings.max_step_tokens, kept_tokens)
        return cls(bank, budget, cls._slots(bank, settings, budget, limits), limits)

    @staticmethod
    def _slots(bank: Bank, settings: StudentSettings, budget: int, limits: Limits) -> int:
        """The operator's number, 1 for a deterministic student, else what fits."""
        if settings.deterministic:
            return 1
        if settings.slots is not None:
            return settings.slots
        typical = InnerLoopSettings(rank=min(TYPICAL_RANK, settings.bounds.max_rank))
        room = budget - pass_bytes(bank, min(limits.tokens, limits.kept_tokens))
        return max(1, min(MOST, room // slot_bytes(bank, typical)))

    def needed(self, settings: InnerLoopSettings, rows: Sequence[Row]) -> int:
        """Bytes that an evaluation takes at least, alone on the device."""
        longest = max(len(row.ids) for row in rows)
        return slot_bytes(self.bank, settings) + pass_bytes(self.bank, longest, kept=longest <= self.limits.kept_tokens)

    def fits(self, held: int, settings: InnerLoopSettings) -> bool:
        """Whether another slot has room beside slots that hold so many bytes."""
        a_pass = pass_bytes(self.bank, min(self.limits.tokens, self.limits.kept_tokens))
        return held + slot_bytes(self.bank, settings) + a_pass <= self.budget

"""What training takes of the device's memory, predicted, against what it may take.

Four bytes of value, gradient and two moments of AdamW for each parameter of an adapter, and what is remembered of the
layers below it; for a pass, what its tokens leave behind for the backward pass. From that follow how many slots there
are, how large a pass is, when activations are computed again in place of being kept, and which evaluation is too large
for the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from student.bank import Bank
from student.bank_adapter import BankAdapter, targeted
from student.bank_step import Limits
from student.config import StudentSettings
from student.cross_entropy import CHUNK
from student.heads import plain_head
from student.inner_loop import Row
from student.lower_layers import first_adapted
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.models.memory import free_bytes

MOST = 16
"""Slots chosen without being asked; more hardly pay, and each waits for the others' steps."""
SHARE = 0.6
"""Of the free memory that training may take; the rest is for quizzes and for whoever else lives here."""
TYPICAL_RANK = 32


def slot_bytes(bank: Bank, settings: InnerLoopSettings, rows: Sequence[Row] = ()) -> int:
    """Of the adapter, its gradient and its optimiser in one slot, and of what is remembered of the layers below it."""
    first = first_adapted(bank.loaded.model, settings.adapt_last_layers)
    targets = targeted(bank.projections, settings.target_modules, first)
    adapter = 16 * settings.rank * sum(p.in_features + p.out_features for p in targets)
    if not first:
        return adapter
    tokens = sum(len(row.ids) for row in set(rows))
    return adapter + tokens * bank.loaded.model.config.get_text_config().hidden_size * _element(bank)


def pass_bytes(bank: Bank, tokens: int, *, kept: bool = True, rank: int = 0) -> int:
    """Of the activations of one pass of so many tokens, of a weight that it dequantises, and of its logits.

    `rank` is that of all adapters which act on a token together: its slot's, and the frozen version's below it.
    Without `kept` each layer keeps its input only, and one layer at a time all of it.
    """
    # Where a model has more than text in it, its layers are described one level down.
    config = bank.loaded.model.config.get_text_config()
    layers = config.num_hidden_layers
    # Each projection's input and output, and about as much again in norms, rotations and products between them.
    a_layer = 2 * sum(p.in_features + p.out_features for p in bank.projections) * _element(bank) // layers
    if bank.device.type == "cpu":
        # By which attention's probabilities are computed again.
        a_layer += config.num_attention_heads * 4
    # What comes out of their first products, in float32.
    a_layer += 4 * rank * len(bank.projections) // layers
    # The gradients of one layer lie beside what all have kept.
    a_token = a_layer // 2 + (layers * a_layer if kept else a_layer + layers * config.hidden_size * _element(bank))
    # Each of several passes at once dequantises a weight.
    fixed = bank.unpacked * _element(bank) * bank.workers
    vocabulary = bank.loaded.model.get_output_embeddings().weight.shape[0]
    if plain_head(bank.loaded.model):
        # Of a chunk, in float32, with its logarithms; of each pass of several at once two chunks without them.
        return tokens * a_token + fixed + CHUNK * vocabulary * 4 * max(4, 2 * bank.workers)
    # Autograd holds the logits of all labels: capped, in float32, their logarithms and two gradients of them.
    return tokens * (a_token + vocabulary * 4 * 5) + fixed


def _element(bank: Bank) -> int:
    """Bytes of a value in the compute type."""
    return 4 if bank.loaded.compute_dtype == "float32" else 2


@dataclass(frozen=True)
class Load:
    """That by which an evaluation takes memory."""

    settings: InnerLoopSettings
    rows: Sequence[Row] = ()
    parent: BankAdapter | None = None

    @property
    def ranks(self) -> int:
        """Of all adapters that act on its tokens."""
        return self.settings.rank + (self.parent.rank if self.parent is not None else 0)

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        return max((len(row.ids) for row in self.rows), default=0)


@dataclass(frozen=True)
class Capacity:
    """What training on this bank may take."""

    bank: Bank
    budget: int
    """Bytes, for slots and passes together."""
    slots: int
    limits: Limits
    parents: Callable[[], int] = lambda: 0
    """Bytes that frozen versions take on the device now, each counted once however many train over it."""
    let_go: Callable[[], None] = lambda: None
    """Gives back those that nobody trains over; they are kept because they may be asked for again."""

    @classmethod
    def of(
        cls,
        bank: Bank,
        settings: StudentSettings,
        parents: Callable[[], int] = lambda: 0,
        let_go: Callable[[], None] = lambda: None,
    ) -> Capacity:
        """By the operator's numbers, and by the memory that is free now where there are none."""
        free = free_bytes(bank.device)
        given = settings.max_training_gib
        budget = int(SHARE * free if given is None else given * 2**30)
        # Half of it at most for a pass, so that there is room for slots.
        tokens, kept_tokens = (_tokens_within(bank, budget // 2, kept=kept) for kept in (False, True))
        # How rows are put together in passes decides the bits of a deterministic student, and must not change.
        tokens = settings.max_step_tokens if settings.deterministic else min(settings.max_step_tokens, tokens)
        limits = Limits(tokens, kept_tokens)
        return cls(bank, budget, cls._slots(bank, settings, budget, limits), limits, parents, let_go)

    @staticmethod
    def _slots(bank: Bank, settings: StudentSettings, budget: int, limits: Limits) -> int:
        """The operator's number, 1 for a deterministic student, else what fits."""
        if settings.deterministic:
            return 1
        if settings.slots is not None:
            return settings.slots
        typical = InnerLoopSettings(rank=min(TYPICAL_RANK, settings.bounds.max_rank))
        room = budget - _largest_pass(bank, limits, limits.tokens, typical.rank)
        return max(1, min(MOST, room // slot_bytes(bank, typical)))

    def needed(self, load: Load) -> int:
        """Bytes that an evaluation takes, alone on the device."""
        lengths = sorted((len(row.ids) for row in load.rows), reverse=True)
        tokens = max(lengths[0], min(self.limits.tokens, sum(lengths[: load.settings.batch_size])))
        frozen = load.parent.values_P.nbytes if load.parent is not None else 0
        largest = _largest_pass(self.bank, self.limits, tokens, load.ranks)
        return slot_bytes(self.bank, load.settings, load.rows) + frozen + largest

    def fits(self, load: Load, beside: Sequence[Load] = ()) -> bool:
        """Whether another slot has room beside others."""
        longest = max(each.longest for each in (load, *beside))
        rank = max(each.ranks for each in (load, *beside))
        # A row longer than a pass is one of its own, and of those that are kept each worker has one under way.
        kept = longest * self.bank.workers
        tokens = max(self.limits.tokens, kept if kept <= self.limits.kept_tokens else longest)
        taken = sum(slot_bytes(self.bank, each.settings, each.rows) for each in (load, *beside))
        return taken + self.parents() + _largest_pass(self.bank, self.limits, tokens, rank) <= self.budget


def _tokens_within(bank: Bank, size: int, *, kept: bool) -> int:
    """The most tokens of a pass of so many bytes; one at least."""
    fixed = pass_bytes(bank, 0, kept=kept)
    return max(1, (size - fixed) // (pass_bytes(bank, 1, kept=kept) - fixed))


def _largest_pass(bank: Bank, limits: Limits, tokens: int, rank: int) -> int:
    """Bytes of the largest pass of at most so many tokens, under adapters of such a rank."""
    kept = pass_bytes(bank, min(tokens, limits.kept_tokens), rank=rank)
    return max(kept, pass_bytes(bank, tokens, kept=False, rank=rank)) if tokens > limits.kept_tokens else kept

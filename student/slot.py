"""A slot: one inner loop in progress, with everything that is its own.

Its adapter, seed, order of rows, learning rate schedule, clip norm, weight decay, optimiser and step count belong to it
alone, and so does its end: a slot that diverges says so and leaves, and its neighbours do not notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from student.bank import Bank
from student.bank_adapter import BankAdapter, targeted
from student.inner_loop import Plateau, Row, Trained, diverged, exploded_above, learning_rate_at, micro_batches
from student.lower_layers import first_adapted
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Rejection

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""


class Slot:
    """Trains a fresh adapter over a frozen parent version, one micro-batch a step.

    `rows` all have a supervised token; at least one row.
    """

    def __init__(
        self,
        bank: Bank,
        rows: Sequence[Row],
        settings: InnerLoopSettings,
        seed: int,
        *,
        parent: BankAdapter | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.settings, self._progress = settings, progress
        self.first_layer = first_adapted(bank.loaded.model, settings.adapt_last_layers)
        """The lowest decoder layer that the fresh adapter acts on."""
        self.lower: dict[Row, torch.Tensor] = {}
        """What enters that layer, [T, D] a row, once it was computed; nothing below it ever changes."""
        targets = targeted(bank.projections, settings.target_modules, self.first_layer)
        self.adapter = BankAdapter(targets, settings.rank, settings.alpha / settings.rank, bank.device, trainable=True)
        self.adapter.initialise(seed)
        self.adapters = (parent, self.adapter) if parent is not None else (self.adapter,)
        self._batches = micro_batches(rows, settings, seed)
        self._plateau = Plateau(settings.plateau_epochs, self.steps // settings.epochs)
        # One vector, so that a step of AdamW is one pass over memory.
        self._parameter = nn.Parameter(self.adapter.values_P)
        self._parameter.grad = self.adapter.grad_P
        self._optimiser = torch.optim.AdamW(
            [self._parameter], lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        vocabulary = bank.loaded.model.get_output_embeddings().weight.shape[0]
        self._vocabulary = vocabulary
        self._step = 0
        self._first_loss = self._last_loss = 0.0
        self.seconds = 0.0
        """Of the steps it took part in; for the room to add."""

    @property
    def steps(self) -> int:
        return len(self._batches)

    @property
    def finished(self) -> bool:
        return self._step == self.steps or self._plateau.reached

    @property
    def batch(self) -> list[Row]:
        """The micro-batch of the next step."""
        return self._batches[self._step]

    def learn(self, loss: float) -> Rejection | None:
        """Ends the step of mean loss `loss` whose gradient lies in the adapter; a rejection if it diverged."""
        self.adapter.complete_gradient()
        self._first_loss = loss if self._step == 0 else self._first_loss
        self._last_loss = loss
        limit = exploded_above(self._first_loss, self._vocabulary)
        if not loss <= limit:
            return diverged("loss", loss, self._step, f"at most {limit:.1f}")
        norm = nn.utils.clip_grad_norm_([self._parameter], self.settings.max_grad_norm or math.inf)
        if not bool(torch.isfinite(norm)):
            return diverged("gradient norm", float(norm), self._step, "a finite number")
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate_at(self._step, self.steps, self.settings)
        self._optimiser.step()
        self.adapter.forget_gradient()
        self._step += 1
        self._plateau.add(loss)
        if self.finished and not bool(torch.isfinite(self._parameter).all()):
            return diverged("weights", math.nan, self._step - 1, "finite numbers")
        if self._progress is not None:
            self._progress(self._step, self.steps, loss)
        return None

    def forget_gradient(self) -> None:
        """Undoes a backward pass that did not come to its end."""
        self.adapter.forget_gradient()

    def release(self) -> None:
        """Gives the gradient's and the optimiser's memory back, once nothing is left to train."""
        self._parameter.grad = None
        self.adapter.freeze()
        self.lower.clear()
        self._optimiser.state.clear()

    def trained(self) -> Trained:
        """What the loop cost."""
        done = self._batches[: self._step]
        return Trained(
            steps=self._step,
            tokens=sum(len(row.ids) for batch in done for row in batch),
            supervised_tokens=sum(row.supervised for batch in done for row in batch),
            first_loss=self._first_loss,
            last_loss=self._last_loss,
            seconds=self.seconds,
        )

"""What is not learnt stays as it was: a KL from the parent policy on the tokens outside the learnt part.

A first line and the notes behind it come from one LoRA, and some steps on a handful of tokens change all that it
writes. The anchor is KL(parent || policy) over the whole vocabulary at each free token of the rest, on what was sampled
and scored anyway. It costs the head's pass over those tokens; the parent's hidden states are computed once, before the
first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from teacher.algorithm import Sample, free_flags

PLACES, STARTS = "anchor_places", "anchor_starts"
"""Keys of a batch: the numbers of its rows, and where in each the completion begins."""


@dataclass(frozen=True)
class Anchored:
    """A candidate, and which tokens of its completion are to be as probable as they were."""

    sample: Sample
    kept: tuple[int, ...]
    """Places in the completion."""


def anchored(whole: Sequence[Sample], learnt: Sequence[Sample]) -> list[Anchored]:
    """Of each sample the free tokens that are not learnt; `learnt`: the same samples, what is not learnt forced."""
    return [
        Anchored(
            sample,
            tuple(
                place
                for place, (free, own) in enumerate(zip(free_flags(sample), free_flags(part), strict=True))
                if free and not own
            ),
        )
        for sample, part in zip(whole, learnt, strict=True)
    ]


class Anchor:
    """The parent's distributions, and how far the policy is from them."""

    def __init__(self, model: Any, rows: Sequence[Anchored], weight: float) -> None:
        """`model`: a PeftModel as the parent left it.

        NotImplementedError for a model whose logits are not its head's projection of the last hidden state.
        """
        base = model.get_base_model()
        self._head, self._rows, self._weight = base.get_output_embeddings(), rows, weight
        self._cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        self._last_BTD: torch.Tensor
        # Of the decoder, so that one pass serves the trainer's loss and this one.
        base.base_model.register_forward_hook(self._keep)
        training = model.training
        model.eval()
        with torch.no_grad():
            self._parent_PD = [self._read(model, row, first=not place) for place, row in enumerate(rows)]
        model.train(training)

    def loss(self, rows: Sequence[int], starts: Sequence[int]) -> torch.Tensor:
        """Weight times the KL in nats, a mean over the rows' kept tokens and then over the rows.

        After a pass of the model over these rows; `starts`: where in each its completion begins.
        """
        each = [
            self._kl(row, self._last_BTD[place], start)
            for place, (row, start) in enumerate(zip(rows, starts, strict=True))
        ]
        return self._weight * torch.stack(each).mean()

    def _kl(self, row: int, hidden_TD: torch.Tensor, start: int) -> torch.Tensor:
        kept = self._rows[row].kept
        if not kept:
            return hidden_TD.sum() * 0.0
        parent_PV = F.log_softmax(self._logits(self._parent_PD[row]), dim=-1)
        policy_PV = F.log_softmax(self._logits(_before(hidden_TD, kept, start)), dim=-1)
        return F.kl_div(policy_PV, parent_PV, reduction="sum", log_target=True) / len(kept)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._last_BTD = output.last_hidden_state

    def _read(self, model: Any, row: Anchored, *, first: bool) -> torch.Tensor:
        sample = row.sample
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]], device=model.device)
        own_V = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1].float()
        if first and not torch.allclose(self._logits(self._last_BTD[0, -1]), own_V, rtol=1e-2, atol=1e-2):
            raise NotImplementedError("anchor: this model makes its logits in a way that is not known here")
        return _before(self._last_BTD[0], row.kept, len(sample.prompt_ids)).clone()

    def _logits(self, hidden_PD: torch.Tensor) -> torch.Tensor:
        logits_PV: torch.Tensor = self._head(hidden_PD.to(self._head.weight.dtype)).float()
        return self._cap * torch.tanh(logits_PV / self._cap) if self._cap else logits_PV


def _before(hidden_TD: torch.Tensor, places: Sequence[int], start: int) -> torch.Tensor:
    """(P, D) What the completion's tokens at `places` are predicted from."""
    return hidden_TD[[start + place - 1 for place in places]]


class AnchoredLoss:
    """Mixed into a trainer, before its own class: the anchor's loss beside the trainer's, from the same pass."""

    anchor: Anchor | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own, and what the anchor adds; a step's rows count alike in it."""
        trainer: Any = self
        own = {name: value for name, value in inputs.items() if name not in (PLACES, STARTS)}
        found = super().compute_loss(model, own, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if self.anchor is None:
            return found
        added = self.anchor.loss(inputs[PLACES].tolist(), inputs[STARTS].tolist())
        scaled = trainer.loss_is_scaled_for_ga
        if scaled or (scaled is None and trainer.model_accepts_loss_kwargs and num_items_in_batch is not None):
            # Nobody divides by the passes of a step after this.
            added = added / trainer.current_gradient_accumulation_steps
        return (found[0] + added, found[1]) if return_outputs else found + added

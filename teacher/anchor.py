"""What is not learnt stays as it was: a KL from the parent policy on the tokens outside the learnt part.

A first line and the notes behind it come from one LoRA, and some steps on a handful of tokens change all that it
writes. The anchor is KL(parent || policy) over the whole vocabulary at each free token of the rest, on what the parent
wrote itself: a bound on how far the policy's own notes are from it. It costs the head's pass over those tokens; the
parent's hidden states are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Anchored:
    """A sequence, and where in it the policy is to stay as it is."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    """Of the ids whose distributions are kept; each at least 1."""


class Anchor:
    """The parent's distributions, and how far the policy is from them."""

    def __init__(self, model: Any, rows: Sequence[Anchored]) -> None:
        """`model`: a PeftModel as the parent left it.

        NotImplementedError for a model whose logits are not its head's projection of the last hidden state.
        """
        base = model.get_base_model()
        self._head = base.get_output_embeddings()
        self._cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        self._rows = rows
        self._last_BTD: torch.Tensor
        # Of the decoder, so that a trainer's own pass serves both losses.
        base.base_model.register_forward_hook(self._keep)
        training = model.training
        model.eval()
        with torch.no_grad():
            self._parent_PD = [self._hidden_of(model, row, first=not place) for place, row in enumerate(rows)]
        model.train(training)

    def loss(self, row: int) -> torch.Tensor:
        """Mean KL of the row's places, natural, after a pass of the model over its ids alone."""
        places = self._rows[row].places
        if not places:
            return self._last_BTD.sum() * 0.0
        parent_PV = F.log_softmax(self._logits(self._parent_PD[row]), dim=-1)
        policy_PV = F.log_softmax(self._logits(self._at(places)), dim=-1)
        return F.kl_div(policy_PV, parent_PV, reduction="sum", log_target=True) / len(places)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._last_BTD = output[0] if isinstance(output, tuple) else output.last_hidden_state

    def _hidden_of(self, model: Any, row: Anchored, *, first: bool) -> torch.Tensor:
        own_V = model(input_ids=torch.tensor([row.ids], device=model.device), logits_to_keep=1).logits[0, -1]
        if first and not torch.allclose(self._logits(self._last_BTD[0, -1]), own_V.float(), rtol=1e-2, atol=1e-2):
            raise NotImplementedError("anchor: this model scales its logits in a way that is not known here")
        return self._at(row.places).clone()

    def _at(self, places: Sequence[int]) -> torch.Tensor:
        """(P, D) The hidden states that the ids at `places` are predicted from."""
        return self._last_BTD[0, [place - 1 for place in places]]

    def _logits(self, hidden_PD: torch.Tensor) -> torch.Tensor:
        logits_PV: torch.Tensor = self._head(hidden_PD.to(self._head.weight.dtype)).float()
        return self._cap * torch.tanh(logits_PV / self._cap) if self._cap else logits_PV

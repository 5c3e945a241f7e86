"""Logits only where they are wanted, and never through a copy of the head's weight.

transformers' `logits_to_keep` does the first; but where each row's last token is taken, its matrix product is a batched
one that copies the weight for each row. Where a model is a decoder and a linear head, both are called here.
Shape suffixes: B rows, M wanted tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def plain_head(model: nn.Module) -> bool:
    """Whether logits are nothing but `lm_head` of the decoder's last hidden state; some families scale or cap them."""
    changed = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    plain = all(getattr(model.config, name, None) in (None, 1.0) for name in changed)
    return plain and {"model", "lm_head"} <= {name for name, _ in model.named_children()}


def hidden_at(model: nn.Module, inputs: dict[str, Any], at_M: torch.Tensor) -> torch.Tensor:
    """[M, D] of one flat sequence, from a model with a plain head."""
    hidden_MD: torch.Tensor = model.get_submodule("model")(**inputs).last_hidden_state[0, at_M]
    return hidden_MD


def logits_at(model: nn.Module, inputs: dict[str, Any], at_M: torch.Tensor) -> torch.Tensor:
    """[M, V] of one flat sequence."""
    if plain_head(model):
        logits_MV: torch.Tensor = model.get_submodule("lm_head")(hidden_at(model, inputs, at_M))
        return logits_MV
    return model(**inputs, logits_to_keep=at_M).logits[0]


def last_logits(model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    """[B, V] after each row's last token, and the cache."""
    if plain_head(model):
        output = model.get_submodule("model")(**inputs)
        return model.get_submodule("lm_head")(output.last_hidden_state[:, -1]), output.past_key_values
    output = model(**inputs, logits_to_keep=1)
    return output.logits[:, -1], output.past_key_values

"""Cross-entropy of a frozen head with its derivative, in one go: logits of few rows at a time are ever in float32.

Autograd would keep the float32 logits of all labels, their logarithms and two gradients of their size; on a CPU that
traffic costs more than the arithmetic. Here the derivative is formed while a row lies in the cache, and takes the
logits' place. Shape suffixes: M labelled tokens, C those of a chunk, S those at hand, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from tutelage.models.quantised import frozen_weight

CHUNK = 256
"""Labelled tokens whose logits are held at a time."""
AT_HAND = 2**19
"""Logits in float32 at a time on a CPU: 2 MiB, about what a core's cache holds."""


@torch.no_grad()
def cross_entropy(
    head: Any, hidden_MD: torch.Tensor, targets_M: torch.Tensor, weights_M: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each label's cross-entropy in nats [M], float32, and the derivative of their weighted sum by `hidden_MD` [M, D].

    `head` is a linear layer that does not train.
    """
    losses, gradients = [], []
    for hidden_CD, targets_C, weights_C in zip(
        hidden_MD.split(CHUNK), targets_M.split(CHUNK), weights_M.split(CHUNK), strict=True
    ):
        logits_CV = head(hidden_CD)
        rows = len(logits_CV) if logits_CV.is_cuda else max(1, AT_HAND // logits_CV.shape[1])
        for logits_SV, targets_S, weights_S in zip(
            logits_CV.split(rows), targets_C.split(rows), weights_C.split(rows), strict=True
        ):
            logs_SV = torch.log_softmax(logits_SV.float(), -1)
            losses.append(-logs_SV.gather(1, targets_S[:, None]).squeeze(1))
            # The derivative of a row's loss: its probabilities, less one at the label.
            slopes_SV = logs_SV.exp_()
            slopes_SV.scatter_add_(1, targets_S[:, None], slopes_SV.new_full((len(targets_S), 1), -1.0))
            logits_SV.copy_(slopes_SV.mul_(weights_S[:, None]))
        gradients.append(logits_CV @ frozen_weight(head, logits_CV.dtype))
    return torch.cat(losses), torch.cat(gradients)

"""The cross-entropy of a frozen head and its derivative are autograd's, in whatever pieces they are computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import student.cross_entropy as module
from student.cross_entropy import cross_entropy


@pytest.mark.parametrize(("chunk", "at_hand"), [(256, 2**19), (5, 2**19), (256, 50), (4, 1)])
def test_losses_and_derivative_are_those_of_autograd(chunk: int, at_hand: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "AT_HAND", at_hand)
    torch.manual_seed(1)
    head = nn.Linear(16, 23, bias=False).requires_grad_(False)
    hidden_MD, targets_M = torch.randn(11, 16, requires_grad=True), torch.randint(23, (11,))
    weights_M = torch.rand(11)
    losses_M, gradient_MD = cross_entropy(head, hidden_MD, targets_M, weights_M)
    expected_M = nn.functional.cross_entropy(head(hidden_MD), targets_M, reduction="none")
    (expected_M * weights_M).sum().backward()
    torch.testing.assert_close(losses_M, expected_M.detach())
    torch.testing.assert_close(gradient_MD, hidden_MD.grad)


def test_in_bfloat16_the_derivative_keeps_the_dtype_and_the_losses_do_not() -> None:
    head = nn.Linear(16, 23, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    losses_M, gradient_MD = cross_entropy(
        head, torch.randn(3, 16, dtype=torch.bfloat16), torch.tensor([1, 2, 3]), torch.ones(3)
    )
    assert (losses_M.dtype, gradient_MD.dtype) == (torch.float32, torch.bfloat16)
    assert (losses_M > 0).all()

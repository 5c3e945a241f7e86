"""The weight that gradients flow back through is the one that the forward pass multiplied by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.models.loading import Quantisation, load_model
from tutelage.models.quantised import frozen_weight
from tutelage.models.tiny import write_tiny_model


@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
def test_a_layer_multiplies_by_its_frozen_weight(tmp_path: Path, quantisation: Quantisation) -> None:
    path = str(write_tiny_model(tmp_path / "model"))
    loaded = load_model(path, quantisation=quantisation, device="cpu", compute_dtype="float32")
    layers = [m for m in loaded.model.modules() if isinstance(m, nn.Linear) and "lm_head" not in str(m)]
    for layer in layers:
        with torch.no_grad():
            product_IO = layer(torch.eye(layer.in_features))
        weight_OI = frozen_weight(layer, torch.float32)
        assert weight_OI.shape == (layer.out_features, layer.in_features)
        assert (product_IO.T - weight_OI).abs().max() < 1e-6
        assert weight_OI.abs().max() > 1e-2


@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
def test_a_row_that_is_large_changes_no_other(tmp_path: Path, quantisation: Quantisation) -> None:
    """Also where it is large enough for bitsandbytes' int8 to compute columns of all rows otherwise."""
    path = str(write_tiny_model(tmp_path / "model"))
    loaded = load_model(path, quantisation=quantisation, device="cpu", compute_dtype="float32", threads=1)
    layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    x_NI = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    beside_NI = x_NI.clone()
    beside_NI[4] *= 100
    with torch.no_grad():
        assert torch.equal(layer(x_NI)[:4], layer(beside_NI)[:4])


def test_an_int8_layer_is_the_same_after_its_first_pass(tmp_path: Path) -> None:
    """bitsandbytes' own moves its codes there, which two threads at once would not survive."""
    path = str(write_tiny_model(tmp_path / "model"))
    loaded = load_model(path, quantisation="int8", device="cpu", compute_dtype="float32", threads=1)
    layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    state, codes, scales = dict(vars(layer.state)), layer.weight.CB, layer.weight.SCB
    with torch.no_grad():
        layer(torch.ones(1, layer.in_features))
    assert (vars(layer.state), layer.weight.CB is codes, layer.weight.SCB is scales) == (state, True, True)

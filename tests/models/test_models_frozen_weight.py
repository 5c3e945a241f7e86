"""The weight that gradients flow back through is the one that the forward pass multiplied by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tutelage.models.loading import load_model
from tutelage.models.quantised import frozen_weight
from tutelage.models.tiny import write_tiny_model


@pytest.mark.parametrize(("quantisation", "tolerance"), [("none", 1e-6), ("nf4", 1e-6), ("int8", 2e-3)])
def test_a_layer_multiplies_by_its_frozen_weight(tmp_path, quantisation, tolerance):
    path = str(write_tiny_model(tmp_path / "model"))
    loaded = load_model(path, quantisation=quantisation, device="cpu", compute_dtype="float32")
    layers = [m for m in loaded.model.modules() if isinstance(m, nn.Linear) and "lm_head" not in str(m)]
    for layer in layers:
        with torch.no_grad():
            product_IO = layer(torch.eye(layer.in_features))
        weight_OI = frozen_weight(layer, torch.float32)
        assert weight_OI.shape == (layer.out_features, layer.in_features)
        assert (product_IO.T - weight_OI).abs().max() < tolerance
        assert weight_OI.abs().max() > 10 * tolerance

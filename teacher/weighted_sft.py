"""TRL's supervised fine-tuning, where each row's loss counts by a weight of its own.

The loss of a step stays the mean over its tokens; a row of weight 2 pulls twice as hard as one of weight 1. One row a
pass, since the trainer's loss is a sum over all rows of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

WEIGHT = "weight"
"""The column of a data set that holds the weights."""


class WeightedSFTTrainer(SFTTrainer):
    """`SFTTrainer` for rows with a `weight`."""

    data_collator: Any
    _signature_columns: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.per_device_train_batch_size != 1:
            raise ValueError("weighted rows go one a pass")
        collate = self.data_collator

        def with_weights(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
            batch = dict(collate([{name: row[name] for name in row if name != WEIGHT} for row in rows]))
            return batch | {WEIGHT: torch.tensor([float(row[WEIGHT]) for row in rows])}

        self.data_collator = with_weights

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if WEIGHT not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, WEIGHT]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one row times its weight."""
        weight = inputs[WEIGHT].item()
        found = super().compute_loss(model, {k: v for k, v in inputs.items() if k != WEIGHT}, *args, **kwargs)
        return (found[0] * weight, found[1]) if isinstance(found, tuple) else found * weight

"""TRL's supervised fine-tuning, where each row's loss counts by a weight of its own.

The loss of a step stays the mean over its tokens; a row of weight 2 pulls twice as hard as one of weight 1. One row a
pass, since the trainer's loss is a sum over all rows of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from teacher.anchor import ROWS, STARTS, AnchoredLoss

WEIGHT = "weight"
"""The column of a data set that holds the weights."""
_NOT_TOKENS = (WEIGHT, ROWS, STARTS)


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
            batch = dict(collate([{name: row[name] for name in row if name not in _NOT_TOKENS} for row in rows]))
            own = [name for name in _NOT_TOKENS if name in rows[0]]
            return batch | {name: torch.tensor([row[name] for row in rows]) for name in own}

        self.data_collator = with_weights

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *_NOT_TOKENS]))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one row times its weight."""
        weight = inputs[WEIGHT].item()
        found = super().compute_loss(model, {k: v for k, v in inputs.items() if k != WEIGHT}, *args, **kwargs)
        return (found[0] * weight, found[1]) if isinstance(found, tuple) else found * weight


class AnchoredSFTTrainer(AnchoredLoss, WeightedSFTTrainer):
    """What its anchor adds has no weight."""

"""TRL's supervised fine-tuning, where each row's loss counts by a weight of its own, and an anchor may hold the rest.

The loss of a step stays the mean over its tokens; a row of weight 2 pulls twice as hard as one of weight 1. One row a
pass, since the trainer's loss is a sum over all rows of a pass. An anchor adds its mean over the rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import SFTTrainer

WEIGHT = "weight"
"""The column of a data set that holds the weights."""
PLACE = "place"
"""The column that holds the numbers of rows, by which an anchor knows them; needed where there is one."""


class WeightedSFTTrainer(SFTTrainer):
    """`SFTTrainer` for rows with a `weight`."""

    anchor: Callable[[int], torch.Tensor] | None = None
    """Given a row's place after a pass over it, what is added to its loss."""
    data_collator: Any
    _signature_columns: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.per_device_train_batch_size != 1:
            raise ValueError("weighted rows go one a pass")
        collate = self.data_collator

        def with_weights(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
            batch = dict(collate([{name: row[name] for name in row if name not in (WEIGHT, PLACE)} for row in rows]))
            return batch | {
                name: torch.tensor([row[name] for row in rows]) for name in (WEIGHT, PLACE) if name in rows[0]
            }

        self.data_collator = with_weights

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, WEIGHT, PLACE]))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one row times its weight, and what the anchor adds."""
        weight = inputs[WEIGHT].item()
        place = inputs[PLACE].item() if PLACE in inputs else 0
        own = {name: value for name, value in inputs.items() if name not in (WEIGHT, PLACE)}
        found = super().compute_loss(model, own, return_outputs, num_items_in_batch)
        loss = (found[0] if return_outputs else found) * weight
        if self.anchor is not None:
            # Where the trainer divides by a step's tokens it leaves the mean over its rows to the loss.
            rows = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.anchor(place) / rows
        return (loss, found[1]) if return_outputs else loss

"""What all algorithms hand to TRL alike: batches, precision, progress, and where the head is applied.

One candidate a pass by default: no pads, and the logits of one row are what fills the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trl.trainer.utils as trl_utils
from transformers import TrainerCallback

from teacher.algorithm import Report, Training
from teacher.policy_lora import diverged


def score_labelled_positions_only() -> None:
    """Make TRL's fused head skip the prompt on a CPU as it does on a GPU: a quarter less time, and less memory.

    TRL takes a device without Triton for one that compiles a program for each shape, and scores every position there.
    The log-probabilities and losses are the same. A TRL that decides otherwise is left as it is.
    """
    if hasattr(trl_utils, "_use_triton"):
        trl_utils._use_triton = lambda device: True


# For this process, which is an update's own.
score_labelled_positions_only()


RUNNING_TOTALS = ("epoch", "num_tokens")
"""What trainers log of how far they are, of which a mean says nothing."""


class Progress(TrainerCallback):
    """Reports each optimiser step with all numbers logged of it, and ends an update that diverges."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer; InvalidInput where the loss is no number any more."""
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise diverged(args.learning_rate, f"its loss was {loss} at step {state.global_step}")
            numbers = {
                name: float(value)
                for name, value in logs.items()
                if isinstance(value, int | float) and name not in RUNNING_TOTALS
            }
            self._report(state.global_step, state.max_steps, loss, numbers)


def common_arguments(training: Training, rows: int) -> dict[str, Any]:
    """Arguments of any TRL configuration for an update on `rows` rows."""
    batch = min(training.settings.batch_size, rows)
    # The largest number of rows a pass that makes whole steps of the batch.
    at_once = max(size for size in range(1, min(training.rows_a_pass, batch) + 1) if batch % size == 0)
    return {
        "output_dir": str(training.scratch),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch // at_once,
        "num_train_epochs": training.settings.epochs,
        "learning_rate": training.settings.learning_rate,
        "seed": training.seed,
        "data_seed": training.seed,
        "gradient_checkpointing": training.gradient_checkpointing,
        "use_cpu": training.device == "cpu",
        "bf16": False,
        "fp16": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }


class RowsAlike:
    """Mixed into a trainer, before its own class, whose loss is a mean over the rows of a pass.

    It takes the mean over the passes of a step, and the last of an epoch may have fewer rows: they would weigh more
    than the others, and an update would depend on how many rows a pass has room for. (That of `bnpo`, a mean over the
    tokens of a pass, still does.)
    """

    _shares: Iterator[float] = iter(())

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        """The passes of a step, whose rows are counted."""
        above: Any = super()
        passes, items = above.get_batch_samples(*args)
        rows = [len(each) if isinstance(each, list) else len(each["input_ids"]) for each in passes]
        self._shares = iter([count * len(rows) / sum(rows) for count in rows])
        return passes, items

    def compute_loss(self, *args: Any, **named: Any) -> Any:
        """The pass's own, by its share of the step's rows."""
        above: Any = super()
        found, share = above.compute_loss(*args, **named), next(self._shares, 1.0)
        return (found[0] * share, *found[1:]) if isinstance(found, tuple) else found * share


@contextmanager
def lora_unrounded(model: Any) -> Iterator[None]:
    """Keeps the LoRA as it is while a trainer is built on its model.

    On a quantised base TRL's trainers round it to bfloat16: by more than ten steps of 2e-5 change, and what they round
    is what the parent has learnt.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = [parameter.data for parameter in parameters]
    yield
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


def lora_in_float32(model: Any) -> None:
    """Steps of 1e-4 need more than the eight bits of bfloat16, in which a quantised base may carry it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def train_in_float32(trainer: Any) -> None:
    """Run a trainer with the LoRA in float32."""
    lora_in_float32(trainer.model)
    trainer.train()

"""What is not learnt stays as it was: a KL from the parent policy on the tokens outside the learnt part.

A first line and the notes behind it come from one LoRA, and some steps on a handful of tokens change all that it
writes. The anchor is KL(parent || policy) over the whole vocabulary at each free token of the rest, on what was sampled
and scored anyway. So all of a candidate is read where the learnt part alone would have done, and the head sees the rest
twice; the parent's hidden states are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from teacher.algorithm import Sample, free_flags
from teacher.trl_training import lora_in_float32
from tutelage.domain.errors import InvalidInput

ROWS, STARTS = "anchor_rows", "anchor_starts"
"""Keys of a batch: the numbers of its rows, and where in each the completion begins."""


@dataclass(frozen=True)
class Anchored:
    """A candidate, and which tokens of its completion are to be as probable as they were."""

    sample: Sample
    kept: tuple[int, ...]
    """Places in the completion."""


def anchored(whole: Sequence[Sample], learnt: Sequence[Sample]) -> list[Anchored]:
    """Of each sample the free tokens that are not learnt; `learnt`: the same samples, what is not learnt forced."""
    return [
        Anchored(
            sample,
            tuple(
                place
                for place, (free, own) in enumerate(zip(free_flags(sample), free_flags(part), strict=True))
                if free and not own
            ),
        )
        for sample, part in zip(whole, learnt, strict=True)
    ]


class Anchor:
    """The parent's distributions, and how far the policy is from them."""

    def __init__(self, model: Any, rows: Sequence[Anchored], weight: float) -> None:
        """`model`: a PeftModel as the parent left it.

        InvalidInput for a model whose logits are made of its last hidden state in a way that is not known here.
        """
        base = model.get_base_model()
        config = base.config.get_text_config()
        self._head, self._rows, self._weight = base.get_output_embeddings(), rows, weight
        self._scale, self._cap = _logit_scale(config), getattr(config, "final_logit_softcapping", None)
        self._last_BTD: torch.Tensor
        # Of the decoder, so that one pass serves the trainer's loss and this one.
        self._hook = base.base_model.register_forward_hook(self._keep)
        training = model.training
        model.eval()
        with torch.no_grad():
            self._check(base, rows[0].sample)
            self._parent_TD = [self._read(base, row) for row in rows]
        model.train(training)

    def loss(self, rows: Sequence[int], starts: Sequence[int]) -> torch.Tensor:
        """Weight times the KL in nats, a mean over the rows' kept tokens and then over the rows.

        After a pass of the model over these rows; `starts`: where in each its completion begins.
        """
        read = zip(rows, self._last_BTD, starts, strict=True)
        each = [self._kl(row, hidden_TD, start) for row, hidden_TD, start in read]
        return self._weight * torch.stack(each).mean()

    def release(self) -> None:
        """Leave the model as it was found."""
        self._hook.remove()

    def _kl(self, row: int, hidden_TD: torch.Tensor, start: int) -> torch.Tensor:
        kept = self._rows[row].kept
        if not kept:
            return hidden_TD.new_zeros((), dtype=torch.float32)
        # Computed again for its gradient: a vocabulary's width of numbers a token is held for one row at a time.
        found: torch.Tensor = checkpoint(
            self._mean_kl, self._parent_TD[row], _before(hidden_TD, kept, start), use_reentrant=False
        )
        return found

    def _mean_kl(self, parent_TD: torch.Tensor, policy_TD: torch.Tensor) -> torch.Tensor:
        parent_TV = F.log_softmax(self._logits(parent_TD), dim=-1)
        policy_TV = F.log_softmax(self._logits(policy_TD), dim=-1)
        return F.kl_div(policy_TV, parent_TV, reduction="sum", log_target=True) / len(parent_TD)

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self._last_BTD = output.last_hidden_state

    def _read(self, base: Any, row: Anchored) -> torch.Tensor:
        base.base_model(input_ids=_ids(row.sample, base.device), use_cache=False)
        return _before(self._last_BTD[0], row.kept, len(row.sample.prompt_ids)).clone()

    def _check(self, base: Any, sample: Sample) -> None:
        """That logits are made here as the model makes them; by their norm, as single ones round."""
        ids = _ids(sample, base.device)
        own_V = base(input_ids=ids, use_cache=False).logits[0, -1].float()
        base.base_model(input_ids=ids, use_cache=False)
        if (self._logits(self._last_BTD[0, -1]) - own_V).norm() > 0.02 * own_V.norm():
            self.release()
            allowed = f"0 with this model: how a {base.config.model_type} makes its logits is not known here"
            raise InvalidInput.of("settings.options.anchor", self._weight, allowed)

    def _logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        logits_TV: torch.Tensor = self._head(hidden_TD.to(self._head.weight.dtype)).float() * self._scale
        return self._cap * torch.tanh(logits_TV / self._cap) if self._cap else logits_TV


def _ids(sample: Sample, device: Any) -> torch.Tensor:
    return torch.tensor([[*sample.prompt_ids, *sample.completion_ids]], device=device)


def _before(hidden_TD: torch.Tensor, places: Sequence[int], start: int) -> torch.Tensor:
    """(T, D) What the completion's tokens at `places` are predicted from."""
    return hidden_TD[[start + place - 1 for place in places]]


def _logit_scale(config: Any) -> float:
    """What a model multiplies its head's output by; the names that TRL knows (`add_fused_lm_head`)."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if (scale := getattr(config, name, None)) is not None:
            return float(scale)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)


class AnchoredLoss:
    """Mixed into a trainer, before its own class: the anchor's loss beside the trainer's, from the same pass."""

    anchor: Anchor | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own, and what the anchor adds: the mean over the rows of a pass, and over a step's passes."""
        trainer: Any = self
        own = {name: value for name, value in inputs.items() if name not in (ROWS, STARTS)}
        above: Any = super()
        found = above.compute_loss(model, own, return_outputs, num_items_in_batch)
        if self.anchor is None:
            return found
        added = self.anchor.loss(inputs[ROWS].tolist(), inputs[STARTS].tolist())
        scaled = trainer.loss_is_scaled_for_ga
        if scaled or (scaled is None and trainer.model_accepts_loss_kwargs and num_items_in_batch is not None):
            # Nobody divides by the passes of a step after this.
            added = added / trainer.current_gradient_accumulation_steps
        return (found[0] + added, found[1]) if return_outputs else found + added


@contextmanager
def held(trainer: Any, whole: Sequence[Sample], learnt: Sequence[Sample], weight: float) -> Iterator[None]:
    """Hold the trainer to the parent, as its model stands now, by a KL of this weight, where that is not 0."""
    if weight == 0:
        yield
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    # Before the parent is read, or rounding alone would be a distance.
    lora_in_float32(model)
    trainer.anchor = Anchor(model, anchored(whole, learnt), weight)
    try:
        yield
    finally:
        trainer.anchor.release()

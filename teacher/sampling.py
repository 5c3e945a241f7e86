"""Sampling of n completions of one prompt, each from a random generator of its own.

The prompt is read once and its cache repeated for the rows. A row that ends leaves the batch, so that a long completion
does not make the short ones cost. Log-probabilities are recorded under the temperature that was sampled with and top_p
1: those that a policy gradient needs. Greedy completions have them under temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tutelage.domain.policy import Sampling


class Form(Protocol):
    """What holds a row's beginning to a form, such as `teacher.constrained.Constraint`."""

    def allowed(self, row: int, log_probs_V: torch.Tensor) -> torch.Tensor:
        """Minus infinity where a token is forbidden."""

    def take(self, row: int, token: int) -> None:
        """The row goes on with a token."""


@dataclass(frozen=True)
class Sampled:
    """One completion: ids, natural log-probabilities (one an id), and whether the last id is a sampled end token."""

    row: int
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    ended: bool
    forced: tuple[bool, ...] = ()
    """One an id: whether the form allowed no other; empty where none was forced."""


@torch.inference_mode()
def sample_completions(
    model: Any,
    prompt_ids: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stop_ids: frozenset[int],
    *,
    form: Form | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Sampled]:
    """One completion a seed, in the order in which they end. The same arguments, weights and threads give the same ids.

    Stops early, without the unfinished rows, when `cancelled` says so.
    """
    device = model.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    first = model(input_ids=torch.tensor([list(prompt_ids)], device=device), use_cache=True, logits_to_keep=1)
    cache = first.past_key_values
    cache.batch_repeat_interleave(len(seeds))
    logits_RV = first.logits[:, -1].float().cpu().expand(len(seeds), -1)
    rows = list(range(len(seeds)))
    ids: list[list[int]] = [[] for _ in seeds]
    log_probs: list[list[float]] = [[] for _ in seeds]
    forced: list[list[bool]] = [[] for _ in seeds]
    while rows and not cancelled():
        log_probs_RV = torch.log_softmax(logits_RV / (sampling.temperature or 1.0), dim=-1)
        alive = []
        for place, row in enumerate(rows):
            row_V = log_probs_RV[place]
            allowed_V = row_V if form is None else form.allowed(row, row_V)
            # Behind the form all is allowed, and nothing need be counted.
            forced[row].append(allowed_V is not row_V and int(allowed_V.isfinite().sum()) == 1)
            token = _draw(allowed_V, sampling, generators[row])
            if form is not None:
                form.take(row, token)
            ids[row].append(token)
            log_probs[row].append(float(log_probs_RV[place, token]))
            ended = token in stop_ids
            if ended or len(ids[row]) >= sampling.max_new_tokens:
                told = tuple(forced[row]) if any(forced[row]) else ()
                yield Sampled(row, tuple(ids[row]), tuple(log_probs[row]), ended, told)
            else:
                alive.append(place)
        if len(alive) < len(rows):
            if not alive:
                return
            cache.batch_select_indices(torch.tensor(alive, device=device))
            rows = [rows[place] for place in alive]
        step = torch.tensor([[ids[row][-1]] for row in rows], device=device)
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits_RV = out.logits[:, -1].float().cpu()


def _draw(log_probs_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(log_probs_V.argmax())
    probs_V = torch.softmax(log_probs_V, dim=-1)
    if sampling.top_p < 1:
        ordered_V, places_V = probs_V.sort(descending=True, stable=True)
        # The first token is always kept: what stands before it sums to 0.
        ordered_V[ordered_V.cumsum(0) - ordered_V >= sampling.top_p] = 0
        return int(places_V[int(torch.multinomial(ordered_V, 1, generator=generator))])
    return int(torch.multinomial(probs_V, 1, generator=generator))

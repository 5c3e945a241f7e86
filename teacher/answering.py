"""Short answers to many prompts, in as few batches as a bound on their tokens allows; greedy, so that nothing is drawn.

Prompts of like length share a batch, padded on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig


def batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Places of rows by batch, the shortest first: rows times the longest of them is at most `most_tokens`.

    A row that is longer by itself makes a batch of its own.
    """
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if not found or (len(found[-1]) + 1) * lengths[place] > most_tokens:
            found.append([])
        found[-1].append(place)
    return found


@torch.inference_mode()
def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    most_tokens: int,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, list[int]]]:
    """Place and ids of each answer, without what ended it. Between two batches it stops when `cancelled` says so."""
    pad = min(stop_ids, default=0)
    # Whatever the model's own settings say: no penalties, no sampling.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad,
    )
    for places in batches([len(prompt) + max_new_tokens for prompt in prompts], most_tokens):
        if cancelled():
            return
        longest = max(len(prompts[place]) for place in places)
        ids_BT = torch.full((len(places), longest), pad)
        mask_BT = torch.zeros_like(ids_BT)
        for row, place in enumerate(places):
            start = longest - len(prompts[place])
            ids_BT[row, start:] = torch.tensor(list(prompts[place]))
            mask_BT[row, start:] = 1
        whole_BT = model.generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            generation_config=settings,
        )
        for place, written in zip(places, whole_BT[:, longest:].tolist(), strict=True):
            end = next((at for at, token in enumerate(written) if token in stop_ids), len(written))
            yield place, written[:end]

"""A token attends on a CPU as it always did, only sooner: in bfloat16 to the last bit, in float32 to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher.decoding import NAME, attend, enable_grouped_decoding
from teacher.sampling import sample_completions
from tutelage.domain.policy import Sampling
from tutelage.models.loading import load_model
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model

PROMPT = tuple(range(5, 40))


def written(model: Any) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    sampled = sample_completions(model, PROMPT, (1, 2, 3), Sampling(0.8, 1.0, 12), frozenset())
    return sorted((row.ids, row.log_probs) for row in sampled)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_family_writes_what_it_wrote(family: str, compute_dtype: str, tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "model", family=family))
    loaded = load_model(folder, quantisation="none", compute_dtype=compute_dtype, device="cpu", threads=1)
    before, begun_with = written(loaded.model), loaded.model.config._attn_implementation
    enable_grouped_decoding(loaded.model)
    assert loaded.model.config._attn_implementation == (NAME if begun_with == "sdpa" else begun_with)
    after = written(loaded.model)
    assert [ids for ids, _ in after] == [ids for ids, _ in before]
    for (_, new), (_, old) in zip(after, before, strict=True):
        assert new == (old if compute_dtype == "bfloat16" else pytest.approx(old, abs=1e-5))


@pytest.mark.parametrize("window", [8, 40])
def test_a_sliding_window_is_kept(window: int, tmp_path: Path) -> None:
    """Shorter than the prompt, and passed while writing."""
    folder = write_tiny_model(tmp_path / "model", family="mistral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": window}))
    loaded = load_model(str(folder), quantisation="none", compute_dtype="bfloat16", device="cpu", threads=1)
    assert loaded.model.config.sliding_window == window
    before = written(loaded.model)
    enable_grouped_decoding(loaded.model)
    assert written(loaded.model) == before


def test_grouped_queries_attend_as_with_repeated_keys() -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, heads, tokens, 8) for heads, tokens in ((6, 1), (2, 9), (2, 9)))
    seen, _ = attend(torch.nn.Module(), query, key, value, None, scaling=0.5)
    scores = torch.einsum("bhe,bhse->bhs", query[:, :, 0], key.repeat_interleave(3, 1)) * 0.5
    expected = torch.einsum("bhs,bhse->bhe", scores.softmax(-1), value.repeat_interleave(3, 1))
    assert torch.allclose(seen[:, 0], expected, atol=1e-6)

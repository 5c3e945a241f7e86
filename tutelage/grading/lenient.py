"""The lenient grader: right in other words. Numbers and dates in any spelling, inflections, other orders, more words.

A logistic model over the features of `likeness`, whose few coefficients are in `lenient.json`; it was fitted on one
half of a set of answers that a large model judged, and measured on the other (docs/rewards.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from tutelage.grading.likeness import NAMES, likeness
from tutelage.grading.normalise import visible

THRESHOLD = 0.5
"""An answer counts as right from this probability on."""


def probability(answer: str, gold: Sequence[str], question: str = "") -> float:
    """How probably a judge would call the answer right, 0 to 1, by the gold answer it fits best; 0 for an empty one.

    `question` is what was asked: what it says already is no evidence that the answer is known.
    """
    if not answer.strip():
        return 0.0
    return max((_probability(answer, item, question) for item in gold if item.strip()), default=0.0)


def _probability(answer: str, gold: str, question: str) -> float:
    flat = _flat(answer)
    if answer == gold or (flat and flat == _flat(gold)):
        # Also for answers without a letter or digit, which have no terms.
        return 1.0
    found = likeness(answer, gold, question)
    if found.denied or not found.all:
        return 0.0
    intercept, weights = coefficients()
    logit = intercept + sum(weight * value for weight, value in zip(weights, found.values(), strict=True))
    return 1 / (1 + math.exp(-logit))


def _flat(text: str) -> str:
    return " ".join(visible(text).lower().split()).rstrip(".!")


@lru_cache(maxsize=1)
def coefficients() -> tuple[float, tuple[float, ...]]:
    """Intercept and one weight a feature, in the order of `likeness.NAMES`."""
    stored = json.loads((files("tutelage.grading") / "lenient.json").read_text(encoding="utf-8"))
    return float(stored["intercept"]), tuple(float(stored["weights"].get(name, 0.0)) for name in NAMES)

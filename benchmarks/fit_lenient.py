"""Fits the coefficients of the lenient grader on the development half of the judged answers; prints or writes them.

Logistic regression with a ridge on the standardised features (Newton's method). The held-out half is never read here:
`graders.py` measures on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path

# This file's folder would make `orchestrator` mean the benchmark of that name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.graders import DATA, development, judged_answers
from tutelage.grading.likeness import NAMES, likeness

RIDGE = 3.0


def fitted(features_NF: np.ndarray, right_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Intercept and weights of the raw features; a feature that never varies gets 0."""
    mean_F, spread_F = features_NF.mean(0), features_NF.std(0)
    varies_F = spread_F > 1e-9
    scaled_NF = (features_NF - mean_F) / np.where(varies_F, spread_F, 1.0) * varies_F
    design = np.c_[np.ones(len(right_N)), scaled_NF]
    ridge = np.diag([1e-6, *[RIDGE] * features_NF.shape[1]])
    weights = np.zeros(design.shape[1])
    for _ in range(100):
        probability_N = 1 / (1 + np.exp(-design @ weights))
        hessian = (design * (probability_N * (1 - probability_N))[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian, design.T @ (right_N - probability_N) - ridge @ weights)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    raw_F = weights[1:] / np.where(varies_F, spread_F, 1.0)
    return float(weights[0] - raw_F @ mean_F), raw_F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true", help="put the coefficients where the grader reads them")
    args = parser.parse_args()
    rows = [row for row in judged_answers(args.data) if development(row.question)]
    features = np.array([likeness(row.answer, row.gold, row.question).values() for row in rows])
    # `denied` decides by rule; too few answers have it for a coefficient.
    features[:, NAMES.index("denied")] = 0.0
    intercept, weights = fitted(features, np.array([row.right for row in rows], dtype=float))
    named = {name: round(float(weight), 4) for name, weight in zip(NAMES, weights, strict=True) if name != "denied"}
    text = json.dumps({"intercept": round(intercept, 4), "weights": named}, indent=2) + "\n"
    print(f"{len(rows)} answers of {len({row.question for row in rows})} questions")
    print(text)
    if args.write:
        Path(str(files("tutelage.grading") / "lenient.json")).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

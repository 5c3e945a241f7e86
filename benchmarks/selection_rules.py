"""Which selection rule and estimate of a reward pick self-edits that are truly better? Tried on published rewards.

50 documents x 5 candidates x 3 seeds. Two seeds select, the third judges what was kept, each seed in turn; so the noise
that got a candidate chosen does not speak for it. Gains are over the untouched student; intervals: 95 %, bootstrap over
documents. `advantage` is the judged gain over the mean of the same document's candidates: what the rule knows beyond
chance. `--quick` makes rewards of known variance in place of the published ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from teacher.selection import SelectionSettings, kept_by
from tutelage.domain.policy import CandidateGroup, ScoredCandidate
from tutelage.domain.reliability import reliability
from tutelage.domain.reward import candidate_estimates

DATA = Path(__file__).resolve().parents[1].parent / "shared/data/published_rewards_round1.json"
RESAMPLES = 2000
RULES = {
    "all": SelectionSettings("above", float(np.finfo(np.float64).min)),
    "best": SelectionSettings("best", float(np.finfo(np.float64).min)),
    "best, gain > 0": SelectionSettings("best", 0.0),
    "best, gain > 0.1": SelectionSettings("best", 0.1),
    "above 0": SelectionSettings("above", 0.0),
    "above 0.1": SelectionSettings("above", 0.1),
    "above 0.2": SelectionSettings("above", 0.2),
    "top 10 %": SelectionSettings("top", 0.0, 0.1),
    "top 20 %": SelectionSettings("top", 0.0, 0.2),
    "top 30 %": SelectionSettings("top", 0.0, 0.3),
    "top 50 %": SelectionSettings("top", 0.0, 0.5),
    "weighted by gain": SelectionSettings("weighted", 0.0),
    "lead": SelectionSettings("lead", float(np.finfo(np.float64).min)),
    "lead, gain > 0": SelectionSettings("lead", 0.0),
}
DEFAULT, USUAL = "lead, gain > 0", "best, gain > 0"


@dataclass(frozen=True)
class Outcome:
    """What was kept, on average over the judging seeds, and what it turned out to be worth."""

    rule: str
    estimate: str
    documents: float
    candidates: float
    gain: float
    gain_low: float
    gain_high: float
    advantage: float
    advantage_low: float
    advantage_high: float
    no_better: float
    """Share, by weight, whose judged gain is not above 0."""


def published(path: Path) -> tuple[np.ndarray, list[list[int]]]:
    """Gains over the untouched student, documents x candidates x seeds, and the lengths of the self-edits."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    gains = [[np.subtract(item["adapted"], item["baseline"]).tolist() for item in row["candidates"]] for row in rows]
    return np.array(gains), [[len(item["self_edit"]) for item in row["candidates"]] for row in rows]


def made(seed: int, documents: int = 12, candidates: int = 4) -> tuple[np.ndarray, list[list[int]]]:
    """Rewards whose true reliability is known: a third of a mean of three is signal, as in the published ones."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(0.1, 0.15, (documents, 1, 1)) + draw.normal(0, 0.07, (documents, candidates, 1))
    return truth + draw.normal(0, 0.17, (documents, candidates, 3)), [[100] * candidates] * documents


def weights(rule: str, estimate: str, gains_DCS: np.ndarray, lengths: Sequence[Sequence[int]]) -> np.ndarray:
    """What a rule keeps, and with what weight, where each seed in turn is the one that judges."""
    documents, candidates, seeds = gains_DCS.shape
    weights_DCS = np.zeros_like(gains_DCS)
    sizes = {f"{d:03}/{c}": lengths[d][c] for d in range(documents) for c in range(candidates)}
    for judge in range(seeds):
        others = np.delete(gains_DCS, judge, axis=2)
        estimates = candidate_estimates(others.tolist(), shrink=estimate == "shrunken")
        groups = [
            CandidateGroup(f"{d:03}", tuple(ScoredCandidate(f"{d:03}/{c}", b"", each) for c, each in enumerate(found)))
            for d, found in enumerate(estimates)
        ]
        for kept in kept_by(groups, sizes, RULES[rule]):
            document, candidate = kept.candidate.candidate_id.split("/")
            weights_DCS[int(document), int(candidate), judge] = kept.weight
    return weights_DCS


def outcome(rule: str, estimate: str, gains_DCS: np.ndarray, lengths: Sequence[Sequence[int]], seed: int) -> Outcome:
    """One rule with one estimate, judged by each seed in turn."""
    weights_DCS = weights(rule, estimate, gains_DCS, lengths)
    seeds = gains_DCS.shape[2]
    gain, advantage, no_better = (
        interval(weights_DCS, values, seed)
        for values in (gains_DCS, advantages(gains_DCS), (gains_DCS <= 0).astype(float))
    )
    kept_DCS = weights_DCS > 0
    documents, kept = float(kept_DCS.any(axis=1).sum() / seeds), float(kept_DCS.sum() / seeds)
    return Outcome(rule, estimate, documents, kept, *gain, *advantage, no_better[0])


def advantages(gains_DCS: np.ndarray) -> np.ndarray:
    """Gains over the mean of the same document's candidates under the same seed."""
    advantages_DCS: np.ndarray = gains_DCS - gains_DCS.mean(axis=1, keepdims=True)
    return advantages_DCS


def difference(one: np.ndarray, other: np.ndarray, values_DCS: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Weighted mean under `one` less that under `other`, with its 95 % interval, documents drawn for both alike."""
    drawn = np.random.default_rng(seed).integers(0, len(values_DCS), (RESAMPLES, len(values_DCS)))
    drawn = np.concatenate((np.arange(len(values_DCS))[None], drawn))
    means = [
        (weights_DCS * values_DCS).sum(axis=(1, 2))[drawn].sum(axis=1)
        / np.maximum(weights_DCS.sum(axis=(1, 2))[drawn].sum(axis=1), 1e-12)
        for weights_DCS in (one, other)
    ]
    low, high = np.quantile((means[0] - means[1])[1:], (0.025, 0.975))
    return float(means[0][0] - means[1][0]), float(low), float(high)


def interval(weights_DCS: np.ndarray, values_DCS: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The weighted mean, and its 95 % interval by drawing documents with replacement; zeros where nothing was kept."""
    above_D, below_D = (weights_DCS * values_DCS).sum(axis=(1, 2)), weights_DCS.sum(axis=(1, 2))
    if not below_D.sum():
        return 0.0, 0.0, 0.0
    drawn = np.random.default_rng(seed).integers(0, len(above_D), (RESAMPLES, len(above_D)))
    means = above_D[drawn].sum(axis=1) / np.maximum(below_D[drawn].sum(axis=1), 1e-12)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(above_D.sum() / below_D.sum()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--quick", action="store_true", help="made rewards in place of the published ones")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not args.quick and not args.data.exists():
        print(f"skipped: the published rewards are not at {args.data} (--quick makes some)")
        print(json.dumps({"skipped": True}))
        sys.exit(0)
    begun = time.monotonic()
    gains_DCS, lengths = made(args.seed) if args.quick else published(args.data)
    known = reliability(gains_DCS.tolist())
    assert known is not None
    documents, candidates, seeds = gains_DCS.shape
    print(f"{documents} documents x {candidates} candidates x {seeds} seeds, seed {args.seed}")
    print(f"within-document intraclass correlation: one seed {known.single:.2f}, mean of {seeds} {known.mean:.2f}\n")
    print("| rule | estimate | documents kept | candidates kept | judged gain [95 %] | advantage [95 %] | no better |")
    print("|---|---|---|---|---|---|---|")
    found = [
        outcome(rule, estimate, gains_DCS, lengths, args.seed) for rule in RULES for estimate in ("mean", "shrunken")
    ]
    for item in found:
        print(
            f"| {item.rule} | {item.estimate} | {item.documents:.1f} | {item.candidates:.1f} "
            f"| {item.gain:+.3f} [{item.gain_low:+.3f}, {item.gain_high:+.3f}] "
            f"| {item.advantage:+.3f} [{item.advantage_low:+.3f}, {item.advantage_high:+.3f}] | {item.no_better:.0%} |"
        )
    apart = {
        name: difference(
            weights(DEFAULT, "mean", gains_DCS, lengths), weights(USUAL, "mean", gains_DCS, lengths), values, args.seed
        )
        for name, values in (("gain", gains_DCS), ("advantage", advantages(gains_DCS)))
    }
    print()
    for name, (middle, low, high) in apart.items():
        print(f"`{DEFAULT}` less `{USUAL}`, {name}: {middle:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"\n{time.monotonic() - begun:.1f} s")
    rounded = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(item).items()}
        for item in found
    ]
    print(json.dumps({"seed": args.seed, "icc_of_mean": round(known.mean, 4), "rules": rounded, "difference": apart}))


if __name__ == "__main__":
    main()

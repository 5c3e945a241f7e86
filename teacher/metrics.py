"""The teacher's own metrics, beside those that every server has."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

TOKENS = Counter("tutelage_teacher_tokens", "Tokens read (prompt) and written (completion).", ["direction"])
CANDIDATES = Counter("tutelage_teacher_candidates", "Candidates by what the parser made of them.", ["outcome"])
WRITE_SECONDS = Histogram(
    "tutelage_teacher_write_seconds",
    "Seconds to write all candidates of one task.",
    buckets=(0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640),
)
UPDATE_SECONDS = Histogram(
    "tutelage_teacher_update_seconds",
    "Seconds to train one policy update.",
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200),
)
UPDATES = Counter("tutelage_teacher_updates", "Updates by how they ended.", ["outcome"])
POLICY = Gauge("tutelage_teacher_policy_info", "The policy version most recently made.", ["version", "base_model"])
LAST_UPDATE = Gauge("tutelage_teacher_last_update_success_timestamp_seconds", "When an update last succeeded.")


def show_policy(version: str, base_model: str) -> None:
    """Make `version` the one that the policy metric tells."""
    POLICY.clear()
    POLICY.labels(version, base_model).set(1)

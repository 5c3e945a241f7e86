"""The teacher's own metrics, beside those that every server has; where their labels are known, from the start.

A counter that first appears with its first event has no increase by it: an update a day would never be seen.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from teacher.parsing import Parsed
from tutelage.domain.self_edit import Rejection, RejectionReason

REPAIR_KINDS = (
    "duplicate",
    "unreadable",
    "thought",
    "cut_off",
    "preamble",
    "loop",
    "split",
    "echo",
    "same_answer",
    "over_limit",
)
TOKENS = Counter("tutelage_teacher_tokens", "Tokens read (prompt) and written (completion).", ["direction"])
CANDIDATES = Counter("tutelage_teacher_candidates", "Candidates by what the parser made of them.", ["outcome"])
REJECTED = Counter("tutelage_teacher_rejected", "Candidates that hold no self-edit, by reason.", ["reason"])
REPAIRS = Counter(
    "tutelage_teacher_repairs",
    "What the parser took out of candidates, by kind: duplicate, unreadable (characters), thought, cut_off, preamble, "
    "loop, split, echo, same_answer, over_limit.",
    ["kind"],
)
TASK_REPAIRS = Counter(
    "tutelage_teacher_task_repairs",
    "Characters that nobody can read, and spellings of a chat template's turn markers, mended in tasks to write about.",
)
CHOSEN_FORMATS = Counter("tutelage_teacher_chosen_formats", "Formats that the policy chose for itself.", ["format"])
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
LEARNT = Counter(
    "tutelage_teacher_update_candidates",
    "Candidates given to updates, by what became of them: kept, passed_over, stale, unscored.",
    ["outcome"],
)
POLICY = Gauge("tutelage_teacher_policy_info", "The policy version most recently made.", ["version", "base_model"])
LAST_UPDATE = Gauge("tutelage_teacher_last_update_success_timestamp_seconds", "When an update last succeeded.")
TRAINING = Gauge(
    "tutelage_teacher_update_logged",
    "What the trainer of the latest update logged, by its own names (loss, grad_norm, kl): means over the steps.",
    ["name"],
)


for _direction in ("prompt", "completion"):
    TOKENS.labels(_direction)
for _outcome in ("parsed", "rejected"):
    CANDIDATES.labels(_outcome)
for _reason in RejectionReason:
    REJECTED.labels(_reason.value)
for _kind in REPAIR_KINDS:
    REPAIRS.labels(_kind)
for _outcome in ("updated", "unchanged", "failed"):
    UPDATES.labels(_outcome)
for _outcome in ("kept", "passed_over", "stale", "unscored"):
    LEARNT.labels(_outcome)


def show_policy(version: str, base_model: str) -> None:
    """Make `version` the one that the policy metric tells."""
    POLICY.clear()
    POLICY.labels(version, base_model).set(1)


def show_training(logged: Mapping[str, float]) -> None:
    """Tell what the latest update logged, and nothing of those before."""
    TRAINING.clear()
    for name, mean in logged.items():
        TRAINING.labels(name).set(mean)


def count_lessons(kept: int, passed_over: int, stale: int, unscored: int) -> None:
    """Count the candidates of one update."""
    counts = {"kept": kept, "passed_over": passed_over, "stale": stale, "unscored": unscored}
    for outcome, count in counts.items():
        LEARNT.labels(outcome).inc(count)


def count_parsed(parsed: Parsed) -> None:
    """Count how one candidate ended, and what the parser mended in it."""
    CANDIDATES.labels("rejected" if isinstance(parsed.result, Rejection) else "parsed").inc()
    if isinstance(parsed.result, Rejection):
        REJECTED.labels(parsed.result.reason.value).inc()
    for kind, count in {"duplicate": parsed.duplicates_removed, **parsed.repairs}.items():
        REPAIRS.labels(kind).inc(count)
    if parsed.chosen_format:
        CHOSEN_FORMATS.labels(parsed.chosen_format).inc()

"""The orchestrator's own metrics; labels are bounded, and every combination is there from the first scrape."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from tutelage.domain.made_quiz import Dropped
from tutelage.domain.run import RunState

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_REWARDS = (-1.0, -0.5, -0.25, -0.1, -0.05, 0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)

OUTCOMES = ("report", "rejected", "failed")
LOST_REASONS = ("unavailable", "exhausted", "internal", "refused")

PENDING = Gauge("tutelage_orchestrator_evaluations_pending", "Evaluations that wait for a slot or are under way.")
EVALUATIONS = Counter("tutelage_orchestrator_evaluations_total", "Evaluations that ended, by outcome.", ("outcome",))
EVALUATION_SECONDS = Histogram(
    "tutelage_orchestrator_evaluation_seconds",
    "Seconds from a slot to the outcome, retries included.",
    ("outcome",),
    buckets=_SECONDS,
)
REWARD = Histogram("tutelage_orchestrator_reward", "Rewards of single evaluations.", buckets=_REWARDS)
MEAN_REWARD = Gauge(
    "tutelage_orchestrator_round_mean_reward",
    "Mean reward of the latest round that was scored; NaN before one was since the start.",
)
JUDGED = Counter(
    "tutelage_orchestrator_judged_total",
    "Answers by what a judge said: yes, no, or remembered from before; reports that a judge could not grade: failed at "
    "each try, missing for good.",
    ("result",),
)
ANSWER_OVERLAP = Histogram(
    "tutelage_orchestrator_answer_overlap",
    "Share of a quiz's answers that stand word for word in what was written, the passage left out.",
    buckets=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
MADE_QUESTIONS = Counter(
    "tutelage_orchestrator_made_questions_total",
    "Questions written for documents without any, by what became of them: kept, or dropped for form, as told by the "
    "question, unsupported by the text, duplicate, known without the text, or unanswered with it.",
    ("outcome",),
)
RETRIES = Counter("tutelage_orchestrator_retries_total", "Calls that were tried again, by service.", ("service",))
WORKERS_LOST = Counter(
    "tutelage_orchestrator_workers_lost_total", "Attempts of evaluations that failed, by reason.", ("reason",)
)
POLICY_ROUND = Gauge(
    "tutelage_orchestrator_policy_round", "Round of the newest policy; NaN before the first since the start."
)
RUNS = Gauge("tutelage_orchestrator_runs", "Runs, by state.", ("state",))
COMMITS = Counter("tutelage_orchestrator_commits_total", "Commits decided, by result.", ("result",))
LAST_SUCCESS = Gauge(
    "tutelage_orchestrator_last_success_timestamp_seconds",
    "When an evaluation last gave a report; 0 means not since the start.",
)
STORE_FAULTS = Counter(
    "tutelage_orchestrator_store_faults_total",
    "Transactions that the database did not take: it was away, full, read-only or hung.",
)
STUDENT_REACHABLE = Gauge(
    "tutelage_orchestrator_student_reachable", "Whether a student answered its latest call.", ("student",)
)


# A mean reward of 0 would be one: each restart would look as if all rewards had been lost.
MEAN_REWARD.set(math.nan)
POLICY_ROUND.set(math.nan)


def initialise(students: Iterable[str]) -> None:
    """Sets every label combination to 0."""
    for outcome in OUTCOMES:
        EVALUATIONS.labels(outcome)
        EVALUATION_SECONDS.labels(outcome)
    for result in ("yes", "no", "remembered", "failed", "missing"):
        JUDGED.labels(result)
    for service in ("student", "teacher", "judge"):
        RETRIES.labels(service)
    for outcome in ("kept", *Dropped):
        MADE_QUESTIONS.labels(str(outcome))
    for reason in LOST_REASONS:
        WORKERS_LOST.labels(reason)
    for state in RunState:
        RUNS.labels(state.value)
    for result in ("committed", "not_committed"):
        COMMITS.labels(result)
    for student in students:
        STUDENT_REACHABLE.labels(student)

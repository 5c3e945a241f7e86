"""The student's own metrics; every label combination is there, at 0, from the start."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
OUTCOMES = ("report", "rejected", "failed", "cancelled")


class StudentMetrics:
    """Counters and gauges of one student, in one registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def named(name: str) -> str:
            return f"tutelage_student_{name}"

        self.slots = Gauge(named("slots"), "Slots by state (free, busy)", ["state"], registry=registry)
        self.queue = Gauge(named("queue"), "Evaluations that wait for a slot", registry=registry)
        self.queue_seconds = Histogram(
            named("queue_seconds"), "Seconds an evaluation waited", buckets=BUCKETS, registry=registry
        )
        self.evaluation_seconds = Histogram(
            named("evaluation_seconds"),
            "Seconds of work on an evaluation, by outcome",
            ["outcome"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.evaluations = Counter(
            named("evaluations_total"), "Evaluations ended, by outcome", ["outcome"], registry=registry
        )
        self.training_tokens = Counter(
            named("training_tokens_total"), "Tokens trained on, step by step, pads excluded", registry=registry
        )
        self.adapter_bytes = Gauge(named("adapter_bytes"), "Bytes of stored adapter versions", registry=registry)
        self.step_seconds = Histogram(
            named("step_seconds"), "Seconds of an optimiser step", buckets=STEP_BUCKETS, registry=registry
        )
        self.last_success = Gauge(
            named("last_success_timestamp_seconds"), "Unix time of the last report", registry=registry
        )
        for state in ("free", "busy"):
            self.slots.labels(state)
        for outcome in OUTCOMES:
            self.evaluations.labels(outcome)
            self.evaluation_seconds.labels(outcome)

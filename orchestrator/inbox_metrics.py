"""Metrics of inboxes; inboxes and states are few, and every combination is there from the first scrape."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge

from tutelage.domain.inbox import InboxDocumentState

DOCUMENTS = Gauge("tutelage_orchestrator_inbox_documents", "Documents of an inbox, by state.", ("inbox", "state"))
EVALUATIONS = Counter(
    "tutelage_orchestrator_inbox_evaluations_total", "Evaluations that an inbox's runs used.", ("inbox",)
)


def initialise(inboxes: Iterable[str]) -> None:
    """Sets every label combination to 0."""
    for inbox in inboxes:
        EVALUATIONS.labels(inbox)
        for state in InboxDocumentState:
            DOCUMENTS.labels(inbox, state.value)

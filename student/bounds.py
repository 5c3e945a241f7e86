"""What will be trained with: the run's settings, changed by the edit's directives, held to the student's bounds.

Directives are untrusted: out of bounds they reject the edit, or are clamped where the operator says so. Settings of the
run that are out of bounds are the run's fault and raise `InvalidInput`. A directive that changes the rank keeps
alpha / rank, so that it does not change the size of the updates as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.evaluation import Bounds, InnerLoopSettings
from tutelage.domain.self_edit import (
    ChatDocument,
    Directives,
    Rejection,
    RejectionReason,
    TrainingDocument,
    characters,
)

MOST_ALPHA = 1e6
"""Far above what any loop learns with; a scale that float32 cannot hold would fail all whose pass it is in."""


@dataclass(frozen=True)
class Effective:
    """Settings to train with, and the directives that were clamped to get there."""

    settings: InnerLoopSettings
    clamped_fields: tuple[str, ...] = ()


def _ranges(bounds: Bounds) -> dict[str, tuple[float, float]]:
    return {
        "learning_rate": (bounds.min_learning_rate, bounds.max_learning_rate),
        "epochs": (bounds.min_epochs, bounds.max_epochs),
        "rank": (bounds.min_rank, bounds.max_rank),
    }


def check_settings(settings: InnerLoopSettings, bounds: Bounds) -> None:
    """Raises InvalidInput with every field of the run's settings that is out of bounds."""
    violations = []
    for name, (low, high) in _ranges(bounds).items():
        value = getattr(settings, name)
        if not low <= value <= high:
            violations.append(FieldViolation(f"settings.{name}", str(value), f"{low:g} to {high:g}"))
    if settings.batch_size < 1:
        violations.append(FieldViolation("settings.batch_size", str(settings.batch_size), "at least 1"))
    if settings.plateau_epochs < 0:
        violations.append(FieldViolation("settings.plateau_epochs", str(settings.plateau_epochs), "0 or more"))
    for name in ("weight_decay", "max_grad_norm"):
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            violations.append(FieldViolation(f"settings.{name}", str(value), "a finite number from 0"))
    if not 0 < settings.alpha <= MOST_ALPHA:
        violations.append(FieldViolation("settings.alpha", str(settings.alpha), f"above 0, at most {MOST_ALPHA:,.0f}"))
    if violations:
        raise InvalidInput(violations)


def effective_settings(settings: InnerLoopSettings, directives: Directives, bounds: Bounds) -> Effective | Rejection:
    """The settings to train with, or the rejection that names field, value and range.

    NaN is never clamped: there is no nearest number to it.
    """
    result, clamped = settings, []
    for name, (low, high) in _ranges(bounds).items():
        value = getattr(directives, name)
        if value is None:
            continue
        if not low <= value <= high:
            if not bounds.clamp or math.isnan(value):
                allowed = f"{low:g} to {high:g}"
                return Rejection(
                    RejectionReason.OUT_OF_BOUNDS,
                    field=f"directives.{name}",
                    value=str(value),
                    allowed=allowed,
                    message=f"{name} {value} is out of bounds ({allowed})",
                )
            value = min(max(value, low), high)
            clamped.append(name)
        if name == "rank":
            result = replace(result, rank=value, alpha=settings.alpha * value / settings.rank)
        elif name == "epochs":
            result = replace(result, epochs=value)
        else:
            result = replace(result, learning_rate=float(value))
    if directives.loss_mask is not None:
        result = replace(result, loss_mask=directives.loss_mask)
    return Effective(result, tuple(clamped))


def steps_of(documents: int, settings: InnerLoopSettings) -> int:
    """Optimiser steps of one inner loop."""
    return math.ceil(documents / settings.batch_size) * settings.epochs


def too_many(documents: int, bounds: Bounds) -> Rejection | None:
    """The rejection of an edit with too many documents, known before any of them is tokenised; None if it fits."""
    return _above("documents", documents, bounds.max_documents) if documents > bounds.max_documents else None


def too_long(
    documents: Sequence[TrainingDocument], longest_token: int, bounds: Bounds, context_length: int
) -> Rejection | None:
    """The rejection of an edit with a document that cannot fit, known before any is tokenised; None if all may.

    A message takes a token at least, and a token stands for at most `longest_token` characters.
    """
    most = min(bounds.max_document_tokens, context_length)
    for i, document in enumerate(documents):
        if isinstance(document, ChatDocument) and len(document.messages) > most:
            return _above(f"documents[{i}].messages", len(document.messages), most)
        if characters(document) > most * longest_token:
            return _above(f"documents[{i}].characters", characters(document), most * longest_token)
    return None


def too_large(
    token_counts: list[int], settings: InnerLoopSettings, bounds: Bounds, context_length: int
) -> Rejection | None:
    """The rejection of an edit with too many documents, too long a document or too many steps; None if it fits."""
    longest_allowed = min(bounds.max_document_tokens, context_length)
    steps = steps_of(len(token_counts), settings)
    crowded = too_many(len(token_counts), bounds)
    if crowded is not None:
        return crowded
    if max(token_counts, default=0) > longest_allowed:
        longest = max(range(len(token_counts)), key=token_counts.__getitem__)
        return _above(f"documents[{longest}].tokens", token_counts[longest], longest_allowed)
    if steps > bounds.max_steps:
        return _above("steps", steps, bounds.max_steps)
    return None


def _above(field: str, value: int, allowed: int) -> Rejection:
    return Rejection(
        RejectionReason.TOO_LARGE,
        field=field,
        value=str(value),
        allowed=f"at most {allowed}",
        message=f"{field}: {value} is above {allowed}",
    )

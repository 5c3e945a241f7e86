"""A quiz that was made for a document: how its questions are checked, and why those that are missing were dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tutelage.domain.task import Quiz

MADE = "made-"
"""What the ids of made questions begin with."""


class QuizCheck(StrEnum):
    """What the frozen first policy has to answer before a made question is kept."""

    NONE = "none"
    """Nothing: the text alone decides."""
    UNKNOWN = "unknown"
    """It must not know the answer without the text."""
    BOTH = "both"
    """It must find the answer with the text, and not know it without."""


DEFAULT_CHECK = QuizCheck.UNKNOWN
"""A small first policy finds too few answers in a text for more: most good questions would be dropped with the bad."""


class Dropped(StrEnum):
    """Why a question that was written is not in the quiz."""

    FORM = "form"
    """A question or answer too short or too long."""
    TOLD = "told"
    """The question tells its answer."""
    UNSUPPORTED = "unsupported"
    """No sentence of the text has the answer and is about the question."""
    DUPLICATE = "duplicate"
    """The same question or answer as one before."""
    KNOWN = "known"
    """Answered without the text."""
    UNANSWERED = "unanswered"
    """Not answered with the text."""


@dataclass(frozen=True)
class MadeQuiz:
    quiz: Quiz
    dropped: Mapping[Dropped, int] = field(default_factory=dict)
    """How many questions were written and dropped; reasons without any are left out."""
    refused: str = ""
    """Why nothing could be written about the document, such as its length; empty where something could."""

    @property
    def told(self) -> str:
        """What is missing and why, for people; empty where nothing was dropped."""
        counts = ", ".join(f"{count} {reason.value}" for reason, count in self.dropped.items() if count)
        return self.refused or (f"dropped: {counts}" if counts else "")

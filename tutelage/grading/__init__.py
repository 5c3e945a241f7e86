"""Scores of an answer against gold answers, computed from strings alone (no torch, no network)."""

from tutelage.grading.leakage import answer_overlap
from tutelage.grading.normalise import normalise
from tutelage.grading.strings import STRING_GRADERS, contains, exact, f1, grade, lenient, probable

__all__ = [
    "STRING_GRADERS",
    "answer_overlap",
    "contains",
    "exact",
    "f1",
    "grade",
    "lenient",
    "normalise",
    "probable",
]

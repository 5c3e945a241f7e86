"""String graders: each takes an answer, the gold answers and the question, and scores 0 to 1 by the best fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tutelage.domain.errors import InvalidInput
from tutelage.extensions import GRADERS, Extended
from tutelage.grading.lenient import THRESHOLD, probability
from tutelage.grading.normalise import normalise


def _words(text: str) -> list[str]:
    # An answer of nothing but articles or signs ("The", "+") keeps them: else it could never be right.
    return normalise(text).split() or text.lower().split()


def is_within(needle: Sequence[str], words: Sequence[str]) -> bool:
    """Whether `needle` stands in `words` as whole words, one after the other; an empty needle does not."""
    width = len(needle)
    wanted = list(needle)
    return width > 0 and any(list(words[start : start + width]) == wanted for start in range(len(words) - width + 1))


def exact(answer: str, gold: Sequence[str], question: str = "") -> float:
    """1 where the normalised answer equals a normalised gold answer."""
    words = _words(answer)
    return float(any(words == _words(item) for item in gold if item.strip()))


def contains(answer: str, gold: Sequence[str], question: str = "") -> float:
    """1 where the answer contains a gold answer, in whole words ("art" is not in "party")."""
    words, raw = _words(answer), answer.lower().split()
    # The second form is for gold answers that normalise to nothing, which `_words` leaves as they are.
    return float(any(is_within(_words(item), words) or is_within(_words(item), raw) for item in gold))


def f1(answer: str, gold: Sequence[str], question: str = "") -> float:
    """Harmonic mean of precision and recall over words, of the best gold answer."""
    return max((_f1(_words(answer), _words(item)) for item in gold), default=0.0)


def _f1(words: list[str], wanted: list[str]) -> float:
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def lenient(answer: str, gold: Sequence[str], question: str = "") -> float:
    """1 where a judge would probably call the answer right: other spellings, inflections and orders are."""
    return float(probability(answer, gold, question) >= THRESHOLD)


def probable(answer: str, gold: Sequence[str], question: str = "") -> float:
    """The probability that `lenient` decides by: a reward that tells a half answer from none."""
    return probability(answer, gold, question)


STRING_GRADERS: Mapping[str, Callable[[str, Sequence[str], str], float]] = Extended(
    {"exact": exact, "contains": contains, "f1": f1, "lenient": lenient, "probable": probable}, GRADERS
)
"""The graders by name, with those of installed packages."""


def grade(name: str, answer: str, gold: Sequence[str], question: str = "") -> float:
    """Score 0 to 1 of `answer` to `question` by the grader `name`; InvalidInput for an unknown grader."""
    grader = STRING_GRADERS.get(name)
    if grader is None:
        raise InvalidInput.of("graders", name, "one of " + ", ".join(STRING_GRADERS))
    return grader(answer, gold, question)

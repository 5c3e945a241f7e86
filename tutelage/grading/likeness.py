"""What an answer has of a gold answer, as a few numbers between 0 and 1: the evidence that the lenient grader weighs.

Terms of the question tell nothing new, so the gold answer's own terms count most: asked for the shape of a chromosome,
"circular" says all of "circular chromosome". Names may be misspelled by a letter, and quantities may be rounded; years
may not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from tutelage.grading.terms import Term, terms
from tutelage.grading.vocabulary import vocabulary

_NEAR = 0.8
"""How like two longer words must be to count as one, misspelled."""
_ROUNDED = 0.05
"""How far off a quantity may be, as a share of the gold one, and still be half right."""


@dataclass(frozen=True)
class Likeness:
    """Features of one answer beside one gold answer, each 0 to 1."""

    own: float
    """Share of the gold answer's own terms (those that the question does not have) that the answer has."""
    all: float
    """Share of all its content terms."""
    order: float
    """Share of its content terms that can be read off the answer in the gold answer's order."""
    numbers: float
    """Share of its numbers that are there; 1 where it has none."""
    late: float
    """Where in the answer the first own term stands: 0 at its beginning, 1 where none is there."""
    length: float
    """Content terms of the answer beyond question and gold answer; 32 or more count as 1."""
    topic: float
    """Share of the question's content terms that the answer repeats."""
    denied: float
    """1 where each own term found stands behind a negation of its clause that gold answer and question do not have."""

    def values(self) -> tuple[float, ...]:
        """The features in the order of `NAMES`."""
        return astuple(self)


NAMES = tuple(Likeness.__dataclass_fields__)


def likeness(answer: str, gold: str, question: str = "") -> Likeness:
    """The features; an empty answer or gold answer has none of anything."""
    said, asked = terms(answer), terms(question)
    known = {term.text for term in asked}
    wanted = _content(terms(gold))
    own = [term for term in wanted if term.text not in known] or wanted
    places = {term.text: _places(term, said, wanted, known) for term in wanted}
    own_places = [place for term in own for place in places[term.text]]
    numbers = [term for term in wanted if term.number is not None]
    texts = {term.text for term in wanted}
    beyond = [term for term in said if term.content and term.text not in known and term.text not in texts]
    topic = {term.text for term in asked if term.content}
    return Likeness(
        own=_mean([_had(term, places, said) for term in own]),
        all=_mean([_had(term, places, said) for term in wanted]),
        order=_ordered(wanted, places),
        numbers=_mean([_had(term, places, said) for term in numbers]) if numbers else 1.0,
        late=min(own_places) / len(said) if own_places else 1.0,
        length=min(1.0, len(beyond) / 32),
        topic=len(topic & {term.text for term in said}) / len(topic) if topic else 0.0,
        denied=float(bool(own_places) and not _denies((*terms(gold), *asked)) and _denied(said, own_places)),
    )


def _content(items: Sequence[Term]) -> list[Term]:
    """The terms that tell something; all of them where none does."""
    return [term for term in items if term.content] or list(items)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _had(term: Term, places: Mapping[str, Sequence[int]], said: Sequence[Term]) -> float:
    """1 where the term is there, 0.5 where a quantity is there rounded."""
    if places[term.text] or term.number is None:
        return float(bool(places[term.text]))
    if term.number == int(term.number) and 1000 <= term.number <= 2100:
        # A year, in all likelihood, and another year is another answer.
        return 0.0
    near = (
        abs(other.number - term.number) <= _ROUNDED * abs(term.number) for other in said if other.number is not None
    )
    return 0.5 if any(near) else 0.0


def _places(term: Term, said: Sequence[Term], wanted: Sequence[Term], known: set[str]) -> list[int]:
    """Where the term stands: itself, else misspelled, else within an abbreviation of the whole gold answer."""
    exact = [place for place, other in enumerate(said) if other.text == term.text]
    if exact or term.number is not None:
        return exact
    # What the question says already ("Artaxiad") is no misspelling of what it asks for ("Artaxias").
    new = [(place, other) for place, other in enumerate(said) if other.number is None and other.text not in known]
    near = [place for place, other in new if _is_near(term.word, other.word)]
    if near or len(wanted) < 3:
        return near
    initials = "".join(item.word[0] for item in wanted)
    return [place for place, other in new if other.word == initials]


@lru_cache(maxsize=50_000)
def _is_near(one: str, other: str) -> bool:
    """Whether two words are one, misspelled or in another form ("baptism", "baptised")."""
    shorter = min(len(one), len(other))
    if shorter < 4 or abs(len(one) - len(other)) > 4 or one[0] != other[0]:
        return False
    if shorter >= 6 and one[:5] == other[:5]:
        return True
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= _NEAR


def _ordered(wanted: Sequence[Term], places: Mapping[str, Sequence[int]]) -> float:
    last, count = -1, 0
    for term in wanted:
        later = [place for place in places[term.text] if place > last]
        if later:
            last, count = min(later), count + 1
    return count / len(wanted) if wanted else 0.0


def _denies(items: Sequence[Term]) -> bool:
    negations = vocabulary().negations
    return any(term.word in negations for term in items)


def _denied(said: Sequence[Term], places: Sequence[int]) -> bool:
    """Whether a negation stands at most three terms before each of the places, in the same clause."""
    negations = vocabulary().negations
    return all(
        any(
            said[before].word in negations and said[before].clause == said[place].clause
            for before in range(start, place)
        )
        for place in places
        for start in [max(0, place - 3)]
    )

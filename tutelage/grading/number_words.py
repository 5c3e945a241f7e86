"""Numbers written as words, in English, become digits: "two hundred and five thousand" is 205000, "third" is 3."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.grading.vocabulary import vocabulary

SCALES = {
    "hundred": 100.0,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
    "hundredth": 100.0,
    "thousandth": 1e3,
    "millionth": 1e6,
}
"""Factor of a word that multiplies what stands before it."""


def number_at(words: Sequence[str], start: int) -> tuple[float, int] | None:
    """The number that begins at `start`, and how many words it takes; None where no number begins.

    Digits may stand before a scale ("1.5 million"). A scale alone ("hundreds of") is no number.
    """
    small_numbers = vocabulary().small_numbers
    total = current = 0.0
    last: int | None = None
    place, seen = start, False
    while place < len(words):
        word = words[place]
        small = small_numbers.get(word)
        if small is not None:
            # "twenty one" is 21, but "five six" and "nineteen ten" are two numbers.
            if last is not None and not (last >= 20 and last % 10 == 0 and 0 < small < 10):
                break
            current, last, seen = current + small, small, True
        elif not seen and (digits := as_float(word)) is not None:
            current, last, seen = digits, 0, True
        elif word in SCALES and seen and current:
            factor = SCALES[word]
            if factor == 100:
                current *= factor
            else:
                total, current = total + current * factor, 0.0
            last = None
        elif not (
            word == "and" and seen and last is None and place + 1 < len(words) and words[place + 1] in small_numbers
        ):
            break
        place += 1
    return (total + current, place - start) if seen else None


def as_float(word: str) -> float | None:
    """The value of a word of digits such as `1990` or `2.5`; None for anything else."""
    if not word.isascii() or not word[:1].isdigit() or not word.replace(".", "", 1).isdigit():
        return None
    # Longer ones are identifiers, not quantities.
    return float(word) if len(word) <= 15 else None

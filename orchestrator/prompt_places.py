r"""The places in a format's prompt that are filled in, and what looks like one and is none, such as `{titel}`.

A word in braces that nobody replaces would reach the teacher as it stands. JSON and LaTeX have braces too: `{"a": 1}`
and `{}` hold no word alone, and what a command, `_` or `^` takes, such as `\frac{mass}{volume}`, is its argument.
"""

from __future__ import annotations

import re

from tutelage.domain.errors import FieldViolation

STUDENT = "{student}"
"""Where a format's prompt names the student that a group is written for."""
MISTAKES = "{mistakes}"
"""Where it lists questions about other documents that the student answered wrongly."""
PLACES = ("{title}", "{text}", STUDENT, MISTAKES)
"""The first two are filled in by the teacher, the others by the run."""

_ARGUMENTS = re.compile(r"(?:\\[A-Za-z]+\*?|[_^])(?:\[[^\[\]]*\])?(?:\{[^{}]*\})+")
_WORD = re.compile(r"\{\s*[^\W\d_]\w+(?:\.\w+)*\s*\}")
"""Names of one letter are left to sets and formulas."""
_DEEPEST = 10
"""Commands within commands that are followed."""


def place_violations(prompt: str, field: str) -> list[FieldViolation]:
    """Of a prompt with words in braces that are no places."""
    rest = prompt
    for _ in range(_DEEPEST):
        # From the inside out.
        rest = _ARGUMENTS.sub("0", rest)
    unknown = [word for word in dict.fromkeys(_WORD.findall(rest)) if word not in PLACES]
    allowed = f"of the words in braces {', '.join(PLACES)}; any other without braces"
    return [FieldViolation(field, ", ".join(unknown), allowed)] if unknown else []

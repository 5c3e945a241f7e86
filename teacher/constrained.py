"""Sampling held to a form where a completion must begin with one: a line of directives, the name of a chosen format.

A mask over the vocabulary leaves only tokens that the form can go on with (llguidance); behind the form everything is
free. So the line always parses, unless the completion ends before it does. Behind directives the form also begins the
notes, as they are begun in the prompt where no directives come first (`teacher.formats.REPLY_STARTS`). What is recorded
as a token's log-probability stays the model's own.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import llguidance.hf
import llguidance.torch
import torch
from llguidance import LLMatcher

from teacher.directives import schema_of
from teacher.formats import REPLY_STARTS
from tutelage.domain.policy import Format, Parser

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def first_line_grammar(format: Format, names: tuple[str, ...]) -> str | None:
    """The form of a completion's beginning in llguidance's Lark; None where a format asks for none.

    `names`: the formats that a policy may choose from. Those that the prompt speaks of are allowed, or all.
    """
    rules, start = [], []
    if format.directives:
        schema = {**schema_of(format.max_documents), "x-guidance": _COMPACT}
        rules.append("directives: %json " + json.dumps(schema))
        start.append('directives "\\n"')
        if format.parser is not Parser.MIXED and REPLY_STARTS[format.parser]:
            start.append(json.dumps(REPLY_STARTS[format.parser]))
    if format.parser is Parser.MIXED:
        told = [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", format.prompt)]
        rules.append("name: " + " | ".join(json.dumps(name) for name in told or names))
        # Where nothing is given of the reply, the label is part of it.
        start.append('"Format: " name "\\n"' if format.directives else '" " name "\\n"')
    return "\n".join(["start: " + " ".join(start), *rules]) if start else None


class Constraint:
    """The form, followed by each row of a batch by itself."""

    def __init__(self, tokenizer: Any, grammar: str, rows: int) -> None:
        """RuntimeError for a tokenizer or a grammar that llguidance does not take."""
        self._tokenizer = _vocabulary(tokenizer)
        self._matchers = {row: LLMatcher(self._tokenizer, grammar) for row in range(rows)}
        self._mask = llguidance.torch.allocate_token_bitmask(1, self._tokenizer.vocab_size)
        for matcher in self._matchers.values():
            if matcher.is_error():
                raise RuntimeError(f"the form of a completion's beginning is not understood: {matcher.get_error()}")

    def allowed(self, row: int, log_probs_V: torch.Tensor) -> torch.Tensor:
        """The same log-probabilities, minus infinity where the form forbids a token; as they are behind the form."""
        matcher = self._matchers.get(row)
        if matcher is None:
            return log_probs_V
        known = self._tokenizer.vocab_size
        llguidance.torch.fill_next_token_bitmask(matcher, self._mask, 0)
        # llguidance's own way compiles a program for it, which a machine without a compiler cannot.
        bits_W32 = (self._mask.view(-1, 1) >> torch.arange(32, dtype=torch.int32)) & 1
        masked_V = torch.full((len(log_probs_V),), float("-inf"))
        masked_V[:known] = log_probs_V[:known].masked_fill(bits_W32.flatten()[:known] == 0, float("-inf"))
        return masked_V

    def take(self, row: int, token: int) -> None:
        """A row goes on with a token."""
        matcher = self._matchers.get(row)
        if matcher is None:
            return
        if not matcher.consume_token(token) or matcher.is_stopped():
            # Behind its end, or broken by an end token: the form has nothing more to say.
            del self._matchers[row]


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Any) -> Any:
    """Reading a vocabulary takes a moment, and a writer has one."""
    return llguidance.hf.from_tokenizer(tokenizer)

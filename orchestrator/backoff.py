"""How long to wait before something is tried again, and how much trying again a student is good for. Pure."""

from __future__ import annotations


def backoff_s(attempt: int, initial_s: float, factor: float, maximum_s: float) -> float:
    """Seconds to wait after the given failed attempt (1-based)."""
    return float(min(maximum_s, initial_s * factor ** min(attempt - 1, 64)))


class RetryBudget:
    """Whether quick retries are still worth it: each failure costs a token, each success earns a part of one back.

    With half of the tokens spent retries wait their longest, so that trouble that all evaluations share is not answered
    by all of them knocking at once (the rule of gRPC's retry throttling).
    """

    def __init__(self, tokens: float, earned: float = 0.1) -> None:
        self._most, self._left, self._earned = tokens, tokens, earned

    def failed(self) -> None:
        """Spends a token."""
        self._left = max(0.0, self._left - 1)

    def succeeded(self) -> None:
        """Earns a part of a token."""
        self._left = min(self._most, self._left + self._earned)

    @property
    def left(self) -> bool:
        """Whether retries may be quick."""
        return self._left > self._most / 2

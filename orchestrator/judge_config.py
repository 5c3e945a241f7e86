"""Settings of a judge: the endpoint that answers, and how long it may take."""

from __future__ import annotations

from pydantic import Field

from tutelage.chat_endpoint import ChatEndpointSettings


class JudgeSettings(ChatEndpointSettings):
    """A judge: the endpoint that answers, and how long it may take."""

    report_s: float = Field(default=600.0, gt=0)
    """Seconds that all answers of one report may take."""
    max_tokens: int = Field(default=16, ge=1, le=65536)
    """Longest reply; a model that thinks first wants hundreds."""

"""Following a run to its end, through restarts of the orchestrator: the last sequence seen is where it goes on."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tutelage.domain.errors import Unavailable
from tutelage.domain.run import RunEvent, RunState, RunSummary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tutelage.client import OrchestratorClient

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


class Display(Protocol):
    def show(self, summary: RunSummary, event: RunEvent | None) -> None: ...

    def lost(self, reason: str) -> None: ...


async def watch(
    client: OrchestratorClient, run_id: str, patience_s: float, after_sequence: int = 0
) -> AsyncIterator[tuple[RunSummary, RunEvent | None] | Unavailable]:
    """Summaries and events until the run ends; a lost orchestrator is yielded as Unavailable and asked again.

    Raises Unavailable when it stays away for `patience_s`, or cannot be reached at the first try.
    """
    seen, lost_since, pause, met = after_sequence, time.monotonic(), _FIRST_PAUSE_S, False
    while True:
        ended = False
        try:
            async for summary, event in client.watch_run(run_id, after_sequence=seen):
                met, lost_since, pause = True, time.monotonic(), _FIRST_PAUSE_S
                if event is not None:
                    seen = max(seen, event.sequence)
                ended = summary.state.ended
                yield summary, event
            # The first word of a stream is the summary, of an ended run, too: only its end means that all was told.
            if ended:
                return
            summary, _ = await client.get_run(run_id)
            if summary.state.ended:
                yield summary, None
                return
            met, lost_since = True, time.monotonic()
        except Unavailable as error:
            if not met or time.monotonic() - lost_since > patience_s:
                raise
            yield error
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


async def follow(
    client: OrchestratorClient,
    run_id: str,
    display: Display,
    patience_s: float = 600.0,
    told: Callable[[RunEvent], None] | None = None,
) -> RunSummary:
    """Shows a run until it ends, and returns its last summary; `told` gets each event once, in order."""
    last: RunSummary | None = None
    async for item in watch(client, run_id, patience_s):
        if isinstance(item, Unavailable):
            display.lost(str(item))
            continue
        last = item[0]
        if told is not None and item[1] is not None:
            told(item[1])
        display.show(*item)
    if last is None:
        raise Unavailable(f"nothing was heard of run {run_id!r}")
    return last


def duration_text(seconds: float | None) -> str:
    """Such as `3 min 20 s`; `?` when not known."""
    if seconds is None:
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary_text(summary: RunSummary) -> str:
    """One line: where the run is, what it earned so far, how long its evaluations will take.

    What the teacher still has to write and to learn is not in it: often more than the evaluations.
    """
    reward = "?" if summary.mean_reward is None else f"{summary.mean_reward:+.3f}"
    parts = [
        f"round {summary.round}/{summary.rounds} {summary.phase.value}",
        f"{summary.evaluations_done}/{summary.evaluations_total} evaluations",
        f"reward {reward}",
    ]
    if summary.rejected:
        parts.append(f"rejected {summary.rejected}")
    if summary.unscored:
        parts.append(f"unscored {summary.unscored}")
    if summary.state is RunState.RUNNING:
        parts.append(f"{duration_text(summary.seconds_left)} of evaluations left")
        if summary.message:
            parts.append(summary.message)
    else:
        parts.append(summary.state.value)
    return "  ".join(parts)


def _value_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    # Ids are content hashes: their first digits tell them apart.
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text if len(text) <= 60 else text[:57] + "..."


def event_text(event: RunEvent) -> str:
    """One line of an event: time, kind, and its plain fields."""
    fields = " ".join(
        f"{name}={_value_text(value)}"
        for name, value in event.detail.items()
        if isinstance(value, (str, int, float)) and value != ""
    )
    return f"{event.at.astimezone():%H:%M:%S} {event.kind} {fields}".rstrip()


class PlainDisplay:
    """A line for each event and each change of the summary: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, summary: RunSummary, event: RunEvent | None) -> None:
        if event is not None:
            self._line(event_text(event))
        # The estimate alone changes all the time: it is no reason for a line.
        key = summary_text(replace(summary, seconds_left=None))
        if key != self._last:
            self._last = key
            self._line(summary_text(summary))

    def lost(self, reason: str) -> None:
        self._line(f"orchestrator lost ({reason}); trying again")


class LiveDisplay(AbstractContextManager["LiveDisplay"]):
    """One moving line with a bar, events scrolling above it: for terminals."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console, self._summary, self._note = console, None, ""
        self._heard_at = time.monotonic()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2)

    _summary: RunSummary | None

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        summary = self._summary
        if summary is None:
            return Text("waiting for the orchestrator ...")
        left = summary.seconds_left
        if left is not None and summary.state is RunState.RUNNING:
            left = max(0.0, left - (time.monotonic() - self._heard_at))
        reading = summary_text(replace(summary, seconds_left=left))
        total = max(1, summary.evaluations_total)
        bar = ProgressBar(total=total, completed=min(total, summary.evaluations_done), width=40)
        lines: list[RenderableType] = [bar, Text(reading)]
        if self._note:
            lines.append(Text(self._note, style="yellow"))
        return Group(*lines)

    def show(self, summary: RunSummary, event: RunEvent | None) -> None:
        self._summary, self._note, self._heard_at = summary, "", time.monotonic()
        if event is not None:
            self._console.print(event_text(event), markup=False, highlight=False, style="dim")

    def lost(self, reason: str) -> None:
        self._note = f"orchestrator lost ({reason}); trying again"


async def follow_on(
    console: Console,
    client: OrchestratorClient,
    run_id: str,
    patience_s: float,
    told: Callable[[RunEvent], None] | None = None,
) -> RunSummary:
    """Follows with a live display on a terminal, and with plain lines in a pipe or where the cursor cannot be moved."""
    if not console.is_terminal or console.is_dumb_terminal:
        return await follow(client, run_id, PlainDisplay(console), patience_s, told)
    with LiveDisplay(console) as display:
        return await follow(client, run_id, display, patience_s, told)


@contextmanager
def left_running(run_id: str) -> Iterator[None]:
    """Whoever is interrupted within is told that the run goes on: only the orchestrator ends it."""
    try:
        yield
    except asyncio.CancelledError:
        on, off = f"tutelage run watch {run_id}", f"tutelage run cancel {run_id}"
        print(f"run {run_id} goes on; to follow it: {on}; to end it: {off}", file=sys.stderr)
        raise

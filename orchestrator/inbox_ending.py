"""What becomes of an inbox's documents when their run has ended. Pure.

A document that a student learned is never begun again: that student would learn it twice. A document that faults kept
from being decided goes back to the inbox, until it was tried often enough. All others are done, committed or not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator.inbox_rows import Batch, Ending
from tutelage.domain.inbox import InboxDocumentState


@dataclass(frozen=True)
class Decided:
    """What a run decided on a document in one student."""

    student: str
    task_id: str
    committed: bool
    scored: bool
    """Whether any candidate of it was scored."""
    fault: bool = False
    """Whether a fault kept one from being committed."""


def ending_of(
    batch: Batch,
    students: Sequence[str],
    decided: Collection[Decided],
    faulty: Collection[tuple[str, str]],
    limit: int,
    reason: str,
) -> dict[str, Ending]:
    """By task id. `faulty` are (student, task id) with an evaluation that failed; `reason` says how the run ended."""
    endings = {}
    for item in batch.tasks:
        task_id = item.task.id
        mine = {each.student: each for each in decided if each.task_id == task_id}
        undecided = [name for name in students if name not in mine]
        unscored = [
            name for name, each in mine.items() if not each.committed and not each.scored and (name, task_id) in faulty
        ]
        broken = [name for name, each in mine.items() if not each.committed and each.fault and name not in unscored]
        before = batch.attempts.get(task_id, 0)
        if not undecided and not unscored and not broken:
            endings[task_id] = Ending(InboxDocumentState.DONE, before, "")
            continue
        why = f"not decided for {', '.join(undecided)}: {reason}" if undecided else ""
        if unscored:
            why = "; ".join(filter(None, [why, f"no evaluation of it could be finished on {', '.join(unscored)}"]))
        if broken:
            why = "; ".join(filter(None, [why, f"a fault kept it from being committed in {', '.join(broken)}"]))
        if any(each.committed for each in mine.values()):
            endings[task_id] = Ending(InboxDocumentState.DONE, before, why)
        elif before + 1 < limit:
            endings[task_id] = Ending(InboxDocumentState.WAITING, before + 1, why)
        else:
            endings[task_id] = Ending(InboxDocumentState.FAILED, before + 1, why)
    return endings

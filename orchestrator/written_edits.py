"""The self-edits of a run by their content, and the candidates that each stands for: equal ones share evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.plan import Group
from orchestrator.records import Run, StoredCandidate
from orchestrator.run_events import Evaluate
from orchestrator.teaching import first_index
from tutelage.domain.self_edit import SelfEdit


class WrittenEdits:
    """What was written so far."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._edits: dict[tuple[int, str, str], tuple[SelfEdit, list[str]]] = {}

    def remember(self, written: Sequence[StoredCandidate]) -> None:
        """Also candidates that are remembered already."""
        for stored in written:
            if stored.edit is not None and isinstance(stored.candidate.result, SelfEdit):
                at = (stored.round, stored.task_id, stored.edit)
                known = self._edits.setdefault(at, (stored.candidate.result, []))
                if stored.id not in known[1]:
                    known[1].append(stored.id)

    def of(self, work: Evaluate, group: Group) -> tuple[SelfEdit, list[str]]:
        """The edit of an evaluation, and the ids of those of its group's candidates that are this text."""
        edit, candidate_ids = self._edits[work.round, work.task, work.edit]
        first = first_index(self._run, group)
        # Another audience's candidates of the same text are evaluated by its own student.
        own = range(first, first + self._run.config.candidates) if group.audience else None
        return edit, [each for each in candidate_ids if own is None or int(each.rpartition("/")[2]) in own]

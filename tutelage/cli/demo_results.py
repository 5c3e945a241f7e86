"""What the demo shows at the end, read from the run's report: an edit, scores, and what to ask before and after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import Question

if TYPE_CHECKING:
    from rich.console import Console

Tree = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """The question that the demo asks a student before and after."""

    student: str
    question: Question
    commit: bool
    """Whether something was committed in that student."""


def report_tree(content: bytes) -> Tree:
    """The report in the bytes of a JSON report."""
    return dict(json.loads(content)["report"])


def best_candidate(report: Tree) -> Tree | None:
    """The candidate that earned most; None when none was scored."""
    scored = [item for item in report["candidates"] if item["reward"] is not None]
    return max(scored, key=lambda item: float(item["reward"])) if scored else None


def score_rows(report: Tree) -> list[tuple[str, str, dict[str, float], dict[str, float], str]]:
    """(student, document, scores before, scores after, what became of it) for each commit that was tried."""
    titles = {item["task_id"]: item["task_title"] for item in report["candidates"]}
    rows = []
    for commit in report["commits"]:
        kept = f"kept, {commit['version'][:8]}" if commit["committed"] else f"not kept: {commit['reason']}"
        before, after = commit["quiz_before"]["scores"], commit["quiz_after"]["scores"]
        rows.append((commit["student"], titles.get(commit["task_id"], commit["task_id"]), before, after, kept))
    return rows


def question_to_show(report: Tree, tasks: Sequence[TaskWithQuiz]) -> Shown | None:
    """The question that gained most on a committed quiz (chosen to be seen, not to be typical), or simply the first."""
    by_id = {(item.task.id, question.id): question for item in tasks for question in item.quiz.questions}
    best: tuple[tuple[float, float], Shown] | None = None
    for commit in report["commits"]:
        if not commit["committed"]:
            continue
        before = {answer["question_id"]: answer["scores"] for answer in commit["quiz_before"]["answers"]}
        for answer in commit["quiz_after"]["answers"]:
            question = by_id.get((commit["task_id"], answer["question_id"]))
            earlier = before.get(answer["question_id"])
            if question is None or earlier is None:
                continue
            gain = tuple(answer["scores"].get(name, 0.0) - earlier.get(name, 0.0) for name in ("contains", "loglik"))
            if best is None or gain > best[0]:
                best = (gain[0], gain[1]), Shown(commit["student"], question, True)
    if best is not None:
        return best[1]
    students = [commit["student"] for commit in report["commits"]]
    if not students or not tasks:
        return None
    return Shown(students[0], tasks[0].quiz.questions[0], False)


def show_edit(console: Console, report: Tree) -> None:
    """The best self-edit, as the teacher wrote it."""
    from rich.panel import Panel
    from rich.text import Text

    candidate = best_candidate(report)
    if candidate is None:
        console.print("No self-edit was scored.")
        return
    title = f"best self-edit: {candidate['task_title']}, round {candidate['round']}, reward {candidate['reward']:+.3f}"
    console.print(Panel(Text(candidate["text"].strip()), title=title, title_align="left"))


def show_scores(console: Console, report: Tree) -> None:
    """Quiz scores of each student before and after what it kept."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    rows = score_rows(report)
    if not rows:
        console.print("Nothing was offered for keeping: no self-edit was scored.")
        return
    # A row has none where no edit was scored.
    graders = list(dict.fromkeys(name for _, _, before, _, _ in rows for name in before))
    scores = [
        [f"{before[name]:.2f} > {after[name]:.2f}" if name in after else "" for name in graders]
        for _, _, before, after, _ in rows
    ]
    table = Table(box=SIMPLE, title="quiz scores, before > after", title_justify="left", pad_edge=False)
    table.add_column("student", no_wrap=True)
    # On a narrow terminal titles and outcomes give way, never the scores.
    table.add_column("document", max_width=24)
    for number, grader in enumerate(graders):
        table.add_column(grader, no_wrap=True, min_width=max(len(grader), *(len(cells[number]) for cells in scores)))
    table.add_column("outcome")
    for (student, title, _, _, outcome), cells in zip(rows, scores, strict=True):
        table.add_row(student, Text(title, overflow="ellipsis", no_wrap=True), *cells, Text(outcome))
    console.print(table)

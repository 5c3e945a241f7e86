"""Does the text teach the answer of a made question? A check without an answer key.

The frozen first policy answers each question without the text, and with it. What it answers as made without the text
measures nothing that was learned from it; what it does not answer as made with the text was perhaps made up. All
questions of all documents are asked in one call. No policy that learns is ever asked one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.client import TeacherClient
from tutelage.domain.errors import Unavailable
from tutelage.domain.made_quiz import Dropped, QuizCheck
from tutelage.domain.task import DocumentTask, Question
from tutelage.grading import grade

ANSWER_TOKENS = 32
"""Longest answer. Made answers have a few words; what a model adds after them says nothing more."""
GRADERS = ("contains", "lenient")
"""An answer agrees with the made one if one of them says so."""


def prompts_of(document: DocumentTask, question: Question, check: QuizCheck) -> tuple[str, ...]:
    """What is asked about one question: without the text, then with it; as much of it as the check needs."""
    named = document.title.casefold() in question.text.casefold()
    asked = question.text if named else f"{document.title}: {question.text}"
    without = f"Answer the question in a few words.\nQuestion: {asked}"
    having = (
        f'{document.title}: "{document.text}"\n\nAnswer the question in a few words of the text.\n'
        f"Question: {question.text}"
    )
    return {QuizCheck.NONE: (), QuizCheck.UNKNOWN: (without,), QuizCheck.BOTH: (without, having)}[check]


def agrees(answer: str, question: Question) -> bool:
    """Whether an answer is the made one, in these or other words."""
    gold = (question.answer, *question.aliases)
    return any(grade(name, answer, gold, question.text) >= 1 for name in GRADERS)


def verdict(question: Question, answers: Sequence[str]) -> Dropped | None:
    """Why the question is dropped, by the answers to its `prompts_of`; None for a question that is kept."""
    right = [agrees(answer, question) for answer in answers]
    if right[:1] == [True]:
        return Dropped.KNOWN
    return Dropped.UNANSWERED if right[1:] == [False] else None


async def verdicts(
    teacher: TeacherClient,
    asked: Sequence[tuple[DocumentTask, Question]],
    check: QuizCheck,
    *,
    first_policy: str,
    timeout_s: float,
) -> list[Dropped | None]:
    """The verdict on each question; the teacher is asked once for all of them, or not at all."""
    groups = [prompts_of(document, question, check) for document, question in asked]
    prompts = [prompt for group in groups for prompt in group]
    answers: dict[int, str] = {}
    if prompts:
        stream = teacher.answer_prompts(
            prompts, policy_version=first_policy, max_new_tokens=ANSWER_TOKENS, timeout_s=timeout_s
        )
        answers = {place: text async for place, text in stream}
        if sorted(answers) != list(range(len(prompts))):
            raise Unavailable(f"the teacher answered {len(answers)} of {len(prompts)} prompts")
    found = iter(answers[place] for place in range(len(prompts)))
    return [verdict(question, [next(found) for _ in group]) for (_, question), group in zip(asked, groups, strict=True)]

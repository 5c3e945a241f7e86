"""Questions for documents that came without: written by the teacher's first policy, kept only if the text answers them.

The first policy is frozen, so that a teacher that learns cannot learn to ask itself easy questions; and the questions
never enter a prompt of the teacher afterwards. A model that writes questions makes mistakes: a question is kept only if
its answer is short, stands in the text word for word in a sentence that is about what is asked, and is not told by the
question itself; and, as the check demands, if the first policy answers it with the text and not without.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from orchestrator import metrics
from orchestrator.answer_check import verdicts
from orchestrator.config import RetrySettings
from orchestrator.retrying import TEACHER_FAULTS, patiently
from orchestrator.run_violations import task_violations
from tutelage.client import TeacherClient
from tutelage.domain.canonical import derived_seed
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.made_quiz import MADE, Dropped, MadeQuiz, QuizCheck
from tutelage.domain.policy import Candidate, Format, Parser, Sampling
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import ChatDocument, Role, SelfEdit
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.grading.normalise import normalise
from tutelage.grading.terms import terms
from tutelage.grading.vocabulary import vocabulary

_SENTENCE = re.compile(r"(?<=[.!?;])\s+")
LONGEST_ANSWER = 8
"""Words."""
SHORTEST_QUESTION = 3
"""Words."""
TRIES = 3
"""Completions that are asked for, each with a seed of its own."""
SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=384)
FORMAT = Format(
    name="quiz",
    parser=Parser.QUESTION_ANSWER,
    max_documents=24,
    prompt="""Here is a text about the Eiffel Tower: "The Eiffel Tower was built in 1889 by Gustave Eiffel. It is 330 metres high."
Exam questions. Every answer is a few words of the text:
Question: Who built the Eiffel Tower?
Answer: Gustave Eiffel
Question: When was the Eiffel Tower built?
Answer: 1889
Question: How high is the Eiffel Tower?
Answer: 330 metres

Here is a text about {title}: "{text}"
Write eight exam questions about {title}. Every answer is a few words of the text. Use the same form.""",  # noqa: E501
)


def questions_of(task: Task, edits: Iterable[SelfEdit]) -> tuple[tuple[Question, ...], Counter[Dropped]]:
    """The questions of what was written about a document that its text supports, in order; and what was dropped.

    None for a task that is no document.
    """
    dropped: Counter[Dropped] = Counter()
    content = task.content
    if not isinstance(content, DocumentTask):
        return (), dropped
    title = _stems(content.title)
    parts = _SENTENCE.split(content.text)
    sentences = [_Sentence(part.strip(), f" {normalise(part)} ", _stems(part)) for part in parts]
    asked: set[str] = set()
    answered: set[str] = set()
    found: list[Question] = []
    for question, answer in (pair for edit in edits for pair in _pairs(edit, content.text)):
        plain, gold = normalise(question), normalise(answer)
        support = _support(question, gold, title, sentences)
        if not (1 <= len(gold.split()) <= LONGEST_ANSWER and len(plain.split()) >= SHORTEST_QUESTION):
            dropped[Dropped.FORM] += 1
        elif f" {gold} " in f" {plain} ":
            dropped[Dropped.TOLD] += 1
        elif not support:
            dropped[Dropped.UNSUPPORTED] += 1
        # Two questions with one answer are mostly one question in two wordings.
        elif plain in asked or gold in answered:
            dropped[Dropped.DUPLICATE] += 1
        else:
            asked.add(plain)
            answered.add(gold)
            told = answer.strip(" \t\n.\"'")
            found.append(_numbered(Question("", question.strip(), told, content.title, support=support), len(found)))
    return tuple(found), dropped


def _numbered(question: Question, place: int) -> Question:
    return replace(question, id=f"{MADE}{place + 1}")


@dataclass(frozen=True)
class _Sentence:
    text: str
    plain: str
    """In normal form, between spaces."""
    stems: frozenset[str]


def _support(question: str, gold: str, title: frozenset[str], sentences: Sequence[_Sentence]) -> str:
    """The sentence with the answer that has most of what the question is about, the title's words aside.

    Empty where none has half of it. Of equals the first.
    """
    asked = _stems(question) - title - _stems(gold)
    having = [each for each in sentences if f" {gold} " in each.plain and 2 * len(asked & each.stems) >= len(asked)]
    return max(having, key=lambda each: len(asked & each.stems)).text if asked and having else ""


def _stems(text: str) -> frozenset[str]:
    stop = vocabulary().stop_words
    return frozenset(term.text for term in terms(text) if term.word not in stop)


def _pairs(edit: SelfEdit, text: str) -> list[tuple[str, str]]:
    """What was asked about a text. The text itself, which each edit begins with, nobody wrote."""
    pairs = []
    for document in edit.documents:
        if isinstance(document, ChatDocument) and len(document.messages) == 2:
            first, second = document.messages
            if (first.role, second.role) == (Role.USER, Role.ASSISTANT):
                pairs.append((first.content, second.content))
    return pairs[1:] if pairs and _letters(pairs[0][1]) == _letters(text) else pairs


def _letters(text: str) -> str:
    # All that is left of a text whatever is made readable in it.
    return "".join(filter(str.isalnum, text))


def lacks_quiz(item: TaskWithQuiz) -> bool:
    """Whether it is a document that came without questions."""
    return not item.quiz.questions and isinstance(item.task.content, DocumentTask)


def submission_violations(tasks: Sequence[TaskWithQuiz], unasked: bool) -> list[FieldViolation]:
    """What no run could use; with `unasked` documents may still lack their questions."""
    stand_in = Quiz((Question("made", "?", "?"),))
    checked = [replace(item, quiz=stand_in) if unasked and lacks_quiz(item) else item for item in tasks]
    return task_violations(checked, Quiz())


async def make_quizzes(
    teacher: TeacherClient,
    tasks: Sequence[Task],
    questions: int,
    seed: int,
    check: QuizCheck,
    *,
    describe_timeout_s: float,
    write_timeout_s: float,
    retry: RetrySettings,
) -> list[MadeQuiz]:
    """For each task at most so many questions; fewer, or none, when too little was written that holds.

    The same call makes the same quizzes. A document that the teacher refuses, as too long, spoils no other. A teacher
    that is away at the beginning is told, since nothing is lost by it; one that goes away later is waited for.
    """
    waiting = partial(patiently, service="teacher", retry=retry, faults=TEACHER_FAULTS)
    first = (await teacher.describe(timeout_s=describe_timeout_s)).initial_policy_version
    screened: list[tuple[Question, ...]] = []
    made: list[MadeQuiz] = []
    asked: list[tuple[DocumentTask, Question]] = []
    for task in tasks:
        found: tuple[Question, ...] = ()
        dropped, refused = Counter[Dropped](), ""
        if isinstance(task.content, DocumentTask):
            try:
                edits = await waiting(partial(_written, teacher, task, first, seed, write_timeout_s))
                found, dropped = questions_of(task, edits)
            except InvalidInput as error:
                refused = str(error)
            asked += [(task.content, question) for question in found]
        else:
            refused = "a few-shot task brings its own questions"
        screened.append(found)
        made.append(MadeQuiz(Quiz(), dropped, refused))
    answered = partial(verdicts, teacher, asked, check, first_policy=first, timeout_s=write_timeout_s)
    found_out = iter(await waiting(answered))
    return [
        _kept(item, found, [next(found_out) for _ in found], questions)
        for item, found in zip(made, screened, strict=True)
    ]


def _kept(made: MadeQuiz, questions: Sequence[Question], why: Sequence[Dropped | None], most: int) -> MadeQuiz:
    """The quiz of what passed, counted."""
    passed = [question for question, reason in zip(questions, why, strict=True) if reason is None]
    kept = tuple(_numbered(question, place) for place, question in enumerate(passed[:most]))
    counted = Counter(made.dropped) + Counter(reason for reason in why if reason is not None)
    dropped = {reason: counted[reason] for reason in Dropped if counted[reason]}
    metrics.MADE_QUESTIONS.labels("kept").inc(len(kept))
    for reason, count in dropped.items():
        metrics.MADE_QUESTIONS.labels(reason.value).inc(count)
    return replace(made, quiz=Quiz(kept), dropped=dropped)


async def _written(teacher: TeacherClient, task: Task, policy: str, seed: int, timeout_s: float) -> list[SelfEdit]:
    stream = teacher.write_self_edits(
        task,
        format=FORMAT,
        candidates=TRIES,
        sampling=SAMPLING,
        policy_version=policy,
        seed=derived_seed(seed, "quiz", task.id),
        timeout_s=timeout_s,
    )
    written: list[Candidate] = sorted([item async for item in stream], key=lambda item: item.index)
    return [item.result for item in written if isinstance(item.result, SelfEdit)]

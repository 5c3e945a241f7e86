"""What is put to a model in a quiz, and what the answers are worth.

A sitting is one quiz taken by one set of adapters; the quiz room answers many sittings at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from student.bank_adapter import BankAdapter
from student.inner_loop import Row
from student.memory import memory_faults
from tutelage.domain.errors import Exhausted, FieldViolation, InvalidInput, PreconditionFailed
from tutelage.domain.evaluation import Answer
from tutelage.domain.self_edit import LossMask, question_answer
from tutelage.domain.task import Question
from tutelage.grading import STRING_GRADERS, grade
from tutelage.models.chat import NO_LOSS, document_ids, prompt_ids, stop_ids
from tutelage.models.loading import LoadedModel

LOGLIK = "loglik"
GRADERS: tuple[str, ...] = (*STRING_GRADERS, LOGLIK)


class GraderFailed(PreconditionFailed):
    """A grader raised, or gave no score of 0 to 1: a fault, and never what an edit has earned."""


@dataclass(frozen=True)
class Sitting:
    """Questions for the base with these adapters on it. `graders` without a string grader need no written answer."""

    questions: tuple[Question, ...]
    graders: tuple[str, ...]
    adapters: tuple[BankAdapter, ...] = ()

    @property
    def written(self) -> bool:
        """Whether answers are generated at all."""
        return not self.graders or any(name != LOGLIK for name in self.graders)


def asked(question: Question) -> str:
    """The text that is put to the model: the topic precedes the question unless the question names it already."""
    if question.topic and question.topic.casefold() not in question.text.casefold():
        return f"{question.topic}: {question.text}"
    return question.text


def check_quiz(loaded: LoadedModel, questions: Sequence[Question], max_new_tokens: int, field: str) -> None:
    """Raises InvalidInput naming each question that, with its answer, does not fit the model's context.

    What has more characters than its tokens could hold is not tokenised: checks wait for each other.
    """
    violations = []
    prefix = f"{field}." if field else ""
    most = loaded.context_length * loaded.longest_token
    for i, question in enumerate(questions):
        texts = {"text": asked(question), "answer": question.answer}
        endless = {name: len(text) for name, text in texts.items() if len(text) > most}
        if endless:
            violations += [
                FieldViolation(f"{prefix}questions[{i}].{name}", f"{count} characters", f"at most {most} characters")
                for name, count in endless.items()
            ]
            continue
        prompt = len(prompt_ids(loaded.tokenizer, asked(question)))
        gold = 0
        if question.answer:
            row = gold_row(loaded, question)
            gold = row.supervised
            if not gold:
                violations.append(
                    FieldViolation(f"{prefix}questions[{i}].answer", question.answer, "text with a token")
                )
        needed = prompt + max(max_new_tokens, gold)
        if needed > loaded.context_length:
            allowed = f"at most {loaded.context_length} tokens with {max(max_new_tokens, gold)} of an answer"
            violations.append(FieldViolation(f"{prefix}questions[{i}].text", f"{prompt} tokens", allowed))
    if violations:
        raise InvalidInput(violations)


def gold_row(loaded: LoadedModel, question: Question) -> Row:
    """The question with its gold answer, of which only the answer is labelled."""
    ids, labels = document_ids(loaded.tokenizer, question_answer(asked(question), question.answer), LossMask.COMPLETION)
    ends = stop_ids(loaded.tokenizer, loaded.model)
    # What is measured is the answer; the end of the turn after it says nothing of knowledge.
    while labels and (labels[-1] == NO_LOSS or labels[-1] in ends):
        ids.pop()
        labels.pop()
    return Row(tuple(ids), tuple(labels))


def graded(
    sitting: Sitting, texts: Sequence[str], logliks: Sequence[float | None]
) -> tuple[Answer, ...] | ArithmeticError:
    """Answers and scores in the order of the questions; a question without a gold answer gets no scores.

    A likelihood that is no number is the error of this sitting, and of no other. Raises GraderFailed, or Exhausted for
    a grader that runs out of memory.
    """
    if not all(value is None or math.isfinite(value) for value in logliks):
        return ArithmeticError("the likelihood of an answer is not a finite number")
    answers = []
    for question, text, loglik in zip(sitting.questions, texts, logliks, strict=True):
        scores = {}
        for name in sitting.graders if question.answer else ():
            if name == LOGLIK:
                assert loglik is not None
                scores[name] = loglik
            else:
                scores[name] = _score(name, text, question)
        answers.append(Answer(question.id, text, scores))
    return tuple(answers)


def _score(name: str, text: str, question: Question) -> float:
    try:
        with memory_faults():
            score = float(grade(name, text, (question.answer, *question.aliases), question.text))
    except Exhausted:
        raise
    except Exception as error:
        # Not as it is: an ArithmeticError would pass for an edit after which nothing can be computed.
        reason = f"{type(error).__name__}: {error}"
        raise GraderFailed(f"grader {name!r} fails on question {question.id!r}: {reason}") from error
    if not 0 <= score <= 1:
        raise GraderFailed(f"grader {name!r} scores question {question.id!r} with {score}, which is not of 0 to 1")
    return score

"""Tasks and quizzes on the wire."""

from __future__ import annotations

from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import MAX_TASK_ID, Demonstration, DocumentTask, FewShotTask, Question, Quiz, Task
from tutelage.v1 import orchestrator_service_pb2 as orchestrator_pb
from tutelage.v1 import task_pb2 as pb
from tutelage.wire.checks import Checks


def task_to_wire(task: Task) -> pb.Task:
    """The task as a message."""
    content = task.content
    if isinstance(content, DocumentTask):
        return pb.Task(id=task.id, document=pb.DocumentTask(title=content.title, text=content.text))
    demonstrations = [pb.Demonstration(input=item.input, output=item.output) for item in content.demonstrations]
    return pb.Task(id=task.id, few_shot=pb.FewShotTask(instruction=content.instruction, demonstrations=demonstrations))


def task_from_wire(message: pb.Task, field: str = "task") -> Task:
    """A task with an id, and a text or demonstrations."""
    checks = Checks(field)
    checks.text("id", message.id)
    if len(message.id) > MAX_TASK_ID:
        checks.wrong("id", f"{len(message.id)} characters", f"1 to {MAX_TASK_ID} characters")
    kind = message.WhichOneof("task")
    if kind == "document":
        document = message.document
        return checks.passed(
            Task(message.id, DocumentTask(document.title, checks.text("document.text", document.text)))
        )
    if kind == "few_shot":
        few_shot = message.few_shot
        if not few_shot.demonstrations:
            checks.wrong("few_shot.demonstrations", "nothing", "at least one demonstration")
        demonstrations = tuple(Demonstration(item.input, item.output) for item in few_shot.demonstrations)
        return checks.passed(Task(message.id, FewShotTask(few_shot.instruction, demonstrations)))
    checks.wrong("task", "nothing", "document or few_shot")
    return checks.passed(Task(message.id, DocumentTask("", "")))


def question_to_wire(question: Question) -> pb.Question:
    """The question as a message."""
    return pb.Question(
        id=question.id,
        topic=question.topic,
        text=question.text,
        answer=question.answer,
        aliases=question.aliases,
        support=question.support,
    )


def question_from_wire(message: pb.Question, field: str = "question", *, answer_required: bool = False) -> Question:
    """A question with id and text; the gold answer is required in quizzes only."""
    checks = Checks(field)
    if answer_required:
        checks.text("answer", message.answer)
    return checks.passed(
        Question(
            id=checks.text("id", message.id),
            text=checks.text("text", message.text),
            answer=message.answer,
            topic=message.topic,
            aliases=checks.texts("aliases", message.aliases),
            support=message.support,
        )
    )


def _quiz_question(message: pb.Question, field: str) -> Question:
    return question_from_wire(message, field, answer_required=True)


def quiz_to_wire(quiz: Quiz) -> pb.Quiz:
    """The quiz as a message."""
    return pb.Quiz(questions=[question_to_wire(question) for question in quiz.questions])


def quiz_from_wire(message: pb.Quiz, field: str = "quiz", *, required: bool = False) -> Quiz:
    """A quiz whose questions have answers and ids of their own; `required` refuses an empty one."""
    checks = Checks(field)
    if required and not message.questions:
        checks.wrong("questions", "nothing", "at least one question")
    seen: set[str] = set()
    for index, question in enumerate(message.questions):
        if question.id in seen:
            checks.wrong(f"questions[{index}].id", question.id, "an id that is unique within its quiz")
        seen.add(question.id)
    return checks.passed(Quiz(checks.each(_quiz_question, message.questions, "questions")))


def required_quiz_from_wire(message: pb.Quiz, field: str = "quiz") -> Quiz:
    """A quiz with at least one question."""
    return quiz_from_wire(message, field, required=True)


def task_with_quiz_to_wire(item: TaskWithQuiz) -> orchestrator_pb.TaskWithQuiz:
    """The task and its quiz as one message."""
    return orchestrator_pb.TaskWithQuiz(task=task_to_wire(item.task), quiz=quiz_to_wire(item.quiz))


def submission_from_wire(message: orchestrator_pb.TaskWithQuiz, field: str = "document") -> TaskWithQuiz:
    """A task whose quiz may be empty, or not there: an inbox may make one."""
    checks = Checks(field)
    return checks.passed(
        TaskWithQuiz(
            checks.required(task_from_wire, message, "task"), checks.nested(quiz_from_wire, message.quiz, "quiz")
        )
    )


def task_with_quiz_from_wire(message: orchestrator_pb.TaskWithQuiz, field: str = "task") -> TaskWithQuiz:
    """A task with a quiz that is not empty."""
    checks = Checks(field)
    return checks.passed(
        TaskWithQuiz(
            checks.required(task_from_wire, message, "task"), checks.required(required_quiz_from_wire, message, "quiz")
        )
    )

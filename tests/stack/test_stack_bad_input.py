"""Bad input to real services over gRPC: the right status with field and allowed values, and the service goes on."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml

from tutelage.client import SyncOrchestratorClient, SyncStudentClient, SyncTeacherClient
from tutelage.domain.errors import DataLoss, InvalidInput, NotFound, TutelageError, Unavailable
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, InnerLoopSettings
from tutelage.domain.policy import Candidate, Format, Parser, Sampling
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import Directives, Rejection, RejectionReason, SelfEdit, TextDocument, question_answer
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.errors import status_code

if TYPE_CHECKING:
    from conftest import Service

CONTEXT = 512
"""Tokens of the tiny model, which reads a byte as one."""
LONG = "A heron on a key. " * 60
PAIR = ("Which bird is on the arms?", "heron")
NOISE = Format("noise", "Write about {title}: {text}", Parser.WHOLE)
TASK = TaskWithQuiz(
    Task("lamp", DocumentTask("The Orrin lamp", "The Orrin lamp is green.")),
    Quiz((Question("q1", "Colour?", "green"),)),
)
CONFIG: dict[str, Any] = {
    "students": ["ada"], "format": {"name": "noise", "prompt": "{text}", "parser": "whole"}, "candidates": 1,
    "rounds": 1, "sampling": {"max_new_tokens": 8}, "inner_loop": {"rank": 4, "alpha": 8, "epochs": 1},
}  # fmt: skip


@dataclass
class Services:
    student: SyncStudentClient
    teacher: SyncTeacherClient
    orchestrator: SyncOrchestratorClient
    student_settings: dict[str, Any]


def nobodys_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def services(start_service: Callable[..., Service], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    student_settings = {
        "data_dir": str(tmp_path_factory.mktemp("ada")),
        "max_new_tokens": 8,
        "loaded_adapters": 1,
        "bounds": {"max_learning_rate": 0.01, "max_epochs": 4},
        "server": {"max_message_mib": 1},
    }
    student, teacher = start_service("student", **student_settings), start_service("teacher")
    orchestrator = start_service(
        "orchestrator",
        teacher={"address": teacher.wait_ready()},
        students={
            "ada": {"address": student.wait_ready()},
            "absent": {"address": f"127.0.0.1:{nobodys_port()}"},
        },
        retry={"initial_s": 0.1, "maximum_s": 0.2},
    )
    with (
        SyncStudentClient(ChannelSettings(address=student.wait_ready())) as ada,
        SyncTeacherClient(ChannelSettings(address=teacher.wait_ready())) as writer,
        SyncOrchestratorClient(ChannelSettings(address=orchestrator.wait_ready())) as runs,
    ):
        yield Services(ada, writer, runs, student_settings)


def refused(call: Callable[[], object], code: grpc.StatusCode) -> TutelageError:
    with pytest.raises(TutelageError) as caught:
        call()
    assert status_code(caught.value) is code, caught.value
    return caught.value


def refused_input(call: Callable[[], object], **allowed: str) -> None:
    """INVALID_ARGUMENT for exactly these fields (`__` stands for a dot), each with that text in what is allowed."""
    error = refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert isinstance(error, InvalidInput)
    found = {violation.field: violation.allowed for violation in error.violations}
    expected = {field.replace("__", "."): text for field, text in allowed.items()}
    assert found.keys() == expected.keys(), error
    for field, text in expected.items():
        assert text in found[field], found[field]


def key_for(student: SyncStudentClient, **changes: Any) -> EvaluationKey:
    own = student.describe()
    key = EvaluationKey(
        own.base_model, own.base_revision, own.quantisation, "", SelfEdit((question_answer(*PAIR),)),
        Quiz((Question("q1", *PAIR),)), Quiz(), ("loglik",), InnerLoopSettings(rank=4, alpha=8, epochs=1),
        own.engine_revision, 1,
    )  # fmt: skip
    return replace(key, **changes)


def study(student: SyncStudentClient, **changes: Any) -> Any:
    *_, outcome = student.evaluate(key_for(student, **changes))
    return outcome


def write(
    teacher: SyncTeacherClient, task: Task = TASK.task, format: Format = NOISE, candidates: int = 1, **changes: Any
) -> list[Candidate]:
    policy = changes.pop("policy_version", None) or teacher.describe().initial_policy_version
    sampling = Sampling(**{"max_new_tokens": 8, **changes})
    return list(
        teacher.write_self_edits(
            task, format=format, candidates=candidates, sampling=sampling, policy_version=policy, seed=1
        )
    )


def start(
    orchestrator: SyncOrchestratorClient,
    tasks: tuple[TaskWithQuiz, ...] = (TASK,),
    run_id: str = "refused",
    **changes: Any,
) -> object:
    return orchestrator.start_run(run_id, yaml.safe_dump({**CONFIG, **changes}), tasks, Quiz())


@pytest.fixture
def student(services: Services) -> Iterator[SyncStudentClient]:
    """Goes on to evaluate after each test."""
    yield services.student
    assert isinstance(study(services.student), EvaluationReport)


@pytest.fixture
def teacher(services: Services) -> Iterator[SyncTeacherClient]:
    """Goes on to write after each test."""
    yield services.teacher
    assert len(write(services.teacher)) == 1


@pytest.fixture
def orchestrator(services: Services) -> Iterator[SyncOrchestratorClient]:
    """Took in nothing of what a test asked, and goes on to answer."""
    before = [run.run_id for run in services.orchestrator.list_runs()]
    yield services.orchestrator
    assert [run.run_id for run in services.orchestrator.list_runs()] == before
    assert [item.name for item in services.orchestrator.list_students()] == ["ada", "absent"]


def with_quiz(*questions: Question) -> tuple[TaskWithQuiz, ...]:
    return (replace(TASK, quiz=Quiz(questions)),)


def with_text(text: str) -> Task:
    return replace(TASK.task, content=DocumentTask("Orrin", text))


# Unknown format


def test_unknown_format_lists_the_teachers(orchestrator: SyncOrchestratorClient) -> None:
    refused_input(lambda: start(orchestrator, format="sonnet"), config__format="self-qa")


def test_unknown_parser_of_an_own_format_lists_the_parsers(orchestrator: SyncOrchestratorClient) -> None:
    own = {"name": "verse", "prompt": "{text}", "parser": "stanzas"}
    with pytest.raises(InvalidInput) as caught:
        start(orchestrator, format=own)
    assert any("question_answer" in item.allowed for item in caught.value.violations), caught.value
    assert all(item.field.startswith("config.format") for item in caught.value.violations)


def test_a_number_of_an_own_format_that_no_message_holds_is_named(orchestrator: SyncOrchestratorClient) -> None:
    own = {"name": "verse", "prompt": "{text}", "parser": "whole", "max_documents": 10**12}
    with pytest.raises(InvalidInput) as caught:
        start(orchestrator, format=own)
    assert any(
        item.field.endswith("max_documents") and "2147483647" in item.allowed for item in caught.value.violations
    )
    assert all(item.field.startswith("config.format") for item in caught.value.violations)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_an_option_that_is_no_finite_number_is_named(orchestrator: SyncOrchestratorClient, value: float) -> None:
    update = {"algorithm": "dpo", "options": {"beta": value}}
    refused_input(lambda: start(orchestrator, update=update), config__update__options__beta="finite number")


def test_format_without_prompt_is_refused_by_the_teacher(teacher: SyncTeacherClient) -> None:
    refused_input(lambda: write(teacher, format=replace(NOISE, prompt=" ")), format__prompt="not empty")


# Empty document


@pytest.mark.parametrize("text", ["  ", "\x00\u202e \x1b", "... -- !"])
def test_empty_document_is_refused_by_the_orchestrator(orchestrator: SyncOrchestratorClient, text: str) -> None:
    """One of signs alone holds nothing to write about either."""
    empty = replace(TASK, task=with_text(text))
    error = refused(lambda: start(orchestrator, (TASK, empty)), grpc.StatusCode.INVALID_ARGUMENT)
    assert isinstance(error, InvalidInput)
    fields = [item.field for item in error.violations]
    assert "tasks[1].task.document.text" in fields
    assert all(item.allowed for item in error.violations)


def test_empty_document_is_refused_by_the_teacher(teacher: SyncTeacherClient) -> None:
    refused_input(lambda: write(teacher, with_text("\n")), task__document__text="not empty")


def test_self_edit_without_a_document_is_rejected(student: SyncStudentClient) -> None:
    outcome = study(student, self_edit=SelfEdit(()))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field) == (RejectionReason.EMPTY, "documents")


# Quiz without answers


def test_quiz_without_answer_or_question_is_refused_by_the_orchestrator(orchestrator: SyncOrchestratorClient) -> None:
    refused_input(
        lambda: start(orchestrator, with_quiz(Question("q1", "Colour?", ""))),
        **{"tasks[0].quiz.questions[0].answer": "not empty"},
    )
    refused_input(lambda: start(orchestrator, with_quiz()), **{"tasks[0].quiz.questions": "at least one question"})


def test_quiz_without_answer_or_question_is_refused_by_the_student(student: SyncStudentClient) -> None:
    unanswered = Quiz((Question("q1", "Colour?", " "),))
    refused_input(lambda: study(student, quiz=unanswered), **{"key.quiz.questions[0].answer": "not empty"})
    refused_input(
        lambda: study(student, retention_quiz=unanswered), **{"key.retention_quiz.questions[0].answer": "not empty"}
    )
    refused_input(lambda: study(student, quiz=Quiz()), key__quiz__questions="at least one question")


# Directives out of bounds, or not JSON


@pytest.mark.parametrize(
    ("directives", "field", "allowed"),
    [
        (Directives(learning_rate=0.5), "directives.learning_rate", "1e-06 to 0.01"),
        (Directives(epochs=5), "directives.epochs", "1 to 4"),
        (Directives(rank=4096), "directives.rank", "1 to 128"),
    ],
)
def test_directives_out_of_bounds_are_rejected(
    student: SyncStudentClient, directives: Directives, field: str, allowed: str
) -> None:
    outcome = study(student, self_edit=SelfEdit((question_answer(*PAIR),), directives))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field, outcome.allowed) == (RejectionReason.OUT_OF_BOUNDS, field, allowed)


def test_settings_of_a_run_out_of_bounds_are_refused(
    orchestrator: SyncOrchestratorClient, student: SyncStudentClient
) -> None:
    loop = {"rank": 4, "alpha": 8, "epochs": 5, "learning_rate": 0.5}
    refused_input(
        lambda: start(orchestrator, inner_loop=loop),
        config__inner_loop__epochs="1 to 4",
        config__inner_loop__learning_rate="1e-06 to 0.01",
    )
    refused_input(
        lambda: study(student, settings=InnerLoopSettings(rank=4, alpha=8, epochs=5)), settings__epochs="1 to 4"
    )


def test_directives_that_are_not_json_are_a_rejected_candidate(teacher: SyncTeacherClient) -> None:
    # A random model writes noise, which is no JSON object.
    (candidate,) = write(teacher, format=replace(NOISE, directives=True))
    assert isinstance(candidate.result, Rejection)
    assert (candidate.result.reason, candidate.result.field) == (RejectionReason.UNPARSABLE, "directives")
    assert candidate.result.allowed == "a JSON object on the first line"


# A document longer than the context


def test_document_longer_than_the_context_is_refused_by_the_teacher(teacher: SyncTeacherClient) -> None:
    refused_input(lambda: write(teacher, with_text(LONG)), task__document__text=f"at most {CONTEXT} tokens")


def test_run_over_a_document_longer_than_the_context_is_refused(orchestrator: SyncOrchestratorClient) -> None:
    long = replace(TASK, task=replace(with_text(LONG), id="long"))
    with pytest.raises(InvalidInput) as caught:
        start(orchestrator, (TASK, long))
    (violation,) = caught.value.violations
    assert violation.field == "tasks[1].task.document.text"
    assert re.match(r"a prompt of 1\d\d\d tokens for task 'long' and 8 new ones", violation.value)
    assert f"at most {CONTEXT} tokens" in violation.allowed


def test_document_longer_than_the_context_is_named_by_its_place_beside_a_malformed_one(
    orchestrator: SyncOrchestratorClient,
) -> None:
    long = replace(TASK, task=replace(with_text(LONG), id="long"))
    refused_input(
        lambda: start(orchestrator, (replace(TASK, quiz=Quiz()), TASK, long)),
        **{"tasks[0].quiz.questions": "at least one", "tasks[2].task.document.text": f"at most {CONTEXT} tokens"},
    )


def test_document_longer_than_the_context_is_rejected_by_the_student(student: SyncStudentClient) -> None:
    outcome = study(student, self_edit=SelfEdit((TextDocument("A heron."), TextDocument(LONG))))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field) == (RejectionReason.TOO_LARGE, "documents[1].tokens")
    assert str(CONTEXT) in outcome.allowed


def test_question_longer_than_the_context_is_refused_by_the_student(student: SyncStudentClient) -> None:
    allowed = {"questions[0].text": f"at most {CONTEXT} tokens"}
    refused_input(lambda: student.answer([Question("q", LONG, "")], adapter_version=""), **allowed)
    refused_input(
        lambda: study(student, quiz=Quiz((Question("q", LONG, "heron"),))),
        **{"key.quiz." + f: t for f, t in allowed.items()},
    )


def test_all_that_teacher_and_student_would_refuse_is_told_before_the_run_begins(
    orchestrator: SyncOrchestratorClient,
) -> None:
    loop = {**CONFIG["inner_loop"], "target_modules": ["q_proj", "foo", "bar"], "adapt_layers": "last-99"}
    refused_input(
        lambda: start(
            orchestrator,
            (TASK, *with_quiz(Question("q1", "Colour?", "green"), Question("q2", LONG, "green"))),
            candidates=100,
            sampling={"max_new_tokens": 8192},
            inner_loop={**loop, "target_modules": ["q_proj", "foo"]},
        ),
        **{
            "tasks[1].task.id": "an id of its own",
            "tasks[1].quiz.questions[1].text": f"at most {CONTEXT} tokens",
        },
        config__candidates="1 to 64",
        config__sampling__max_new_tokens="1 to 2048",
        config__inner_loop__target_modules="q_proj",
        config__inner_loop__adapt_layers="the layers of this model (student 'ada')",
    )
    with pytest.raises(InvalidInput) as caught:
        start(orchestrator, inner_loop={**loop, "adapt_layers": "all"})
    assert [item.value for item in caught.value.violations] == ["foo", "bar"]


def test_retention_question_longer_than_the_context_is_refused(orchestrator: SyncOrchestratorClient) -> None:
    retention = Quiz((Question("r1", LONG, "Paris"),))
    refused_input(
        lambda: orchestrator.start_run("refused", yaml.safe_dump(CONFIG), (TASK,), retention),
        **{"retention_quiz.questions[0].text": f"at most {CONTEXT} tokens"},
    )


# Unknown and unreachable students


def test_unknown_student_lists_those_there_are(orchestrator: SyncOrchestratorClient) -> None:
    refused_input(lambda: start(orchestrator, students=["ada", "zoe"]), **{"config.students[1]": "ada, absent"})
    error = refused(lambda: orchestrator.set_current_adapter("zoe", "", ""), grpc.StatusCode.NOT_FOUND)
    assert isinstance(error, NotFound)
    assert (error.kind, error.name) == ("student", "zoe")
    assert "ada, absent" in str(error)


def test_unreachable_student_is_named_with_its_address(orchestrator: SyncOrchestratorClient) -> None:
    error = refused(lambda: start(orchestrator, students=["ada", "absent"]), grpc.StatusCode.UNAVAILABLE)
    assert isinstance(error, Unavailable)
    address = {item.name: item for item in orchestrator.list_students()}["absent"].address
    assert "'absent'" in str(error)
    assert address in str(error)
    assert {item.name: item.reachable for item in orchestrator.list_students()} == {"ada": True, "absent": False}


# A wrong model, policy or version


@pytest.mark.parametrize("room", ["student", "teacher"])
def test_wrong_model_name_ends_the_start_and_says_what_is_known(
    start_service: Callable[..., Service], room: str
) -> None:
    service = start_service(room, model="gpt-17")
    assert service.process.wait(60) == 2
    last = service.err.strip().splitlines()[-1]
    assert last.startswith("error: model 'gpt-17' is not known")
    assert "smollm2-135m-instruct" in last
    assert "Traceback" not in service.err


def test_evaluation_for_another_model_is_refused(student: SyncStudentClient) -> None:
    own = student.describe().base_model
    error = refused(lambda: study(student, base_model="gpt-17"), grpc.StatusCode.FAILED_PRECONDITION)
    assert "key.base_model is 'gpt-17'" in str(error)
    assert own in str(error)


def test_unknown_policy_and_version_are_not_found(teacher: SyncTeacherClient, student: SyncStudentClient) -> None:
    refused(lambda: write(teacher, policy_version="0" * 64), grpc.StatusCode.NOT_FOUND)
    refused(lambda: study(student, adapter_version="0" * 64), grpc.StatusCode.NOT_FOUND)
    refused_input(lambda: study(student, adapter_version="../.."), adapter_version="64 lower-case hex digits")


# Unknown configuration keys


def test_unknown_key_of_a_run_is_named_with_those_allowed(orchestrator: SyncOrchestratorClient) -> None:
    refused_input(
        lambda: start(orchestrator, colour="red", inner_loop={"rnak": 4}),
        config__colour="candidates",
        config__inner_loop__rnak="rank",
    )


# A message over the size limit


def test_message_over_the_limit_is_refused_with_the_limit(student: SyncStudentClient) -> None:
    big = SelfEdit((TextDocument("x" * 2**21),))
    refused_input(lambda: study(student, self_edit=big), message=f"at most {2**20} bytes (max_message_mib")


# A truncated adapter


def test_truncated_adapter_is_data_loss(services: Services, student: SyncStudentClient) -> None:
    key = key_for(student, seed=7)
    *_, report = student.evaluate(key)
    assert isinstance(report, EvaluationReport)
    adapter, *_ = student.commit(key.id)
    folder = Path(services.student_settings["data_dir"]) / "adapters" / adapter.version
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    # The one adapter that this student keeps in memory is now another.
    other = key_for(student, seed=8)
    list(student.evaluate(other))
    student.commit(other.id)
    for call in (
        lambda: study(student, adapter_version=adapter.version),
        lambda: student.answer([Question("a", "Who?", "")], adapter_version=adapter.version),
    ):
        error = refused(call, grpc.StatusCode.DATA_LOSS)
        assert isinstance(error, DataLoss)
        assert adapter.version in str(error)
    weights.write_bytes(whole)
    assert student.answer([Question("a", "Who?", "")], adapter_version=adapter.version)

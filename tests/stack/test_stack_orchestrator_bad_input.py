"""Bad input to a real orchestrator over gRPC: the right status with field and allowed values, and it goes on."""

from __future__ import annotations

import re
from dataclasses import replace

import grpc
import pytest
import yaml

from tests.stack.spoilt_requests import CONFIG, CONTEXT, LONG, TASK, refused, refused_input, start, study, with_text
from tutelage.client import SyncOrchestratorClient, SyncStudentClient
from tutelage.domain.errors import InvalidInput, NotFound, Unavailable
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import Question, Quiz


def with_quiz(*questions: Question) -> tuple[TaskWithQuiz, ...]:
    return (replace(TASK, quiz=Quiz(questions)),)


# The format


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


# Documents and quizzes


@pytest.mark.parametrize("text", ["  ", "\x00\u202e \x1b", "... -- !"])
def test_empty_document_is_refused_by_the_orchestrator(orchestrator: SyncOrchestratorClient, text: str) -> None:
    """One of signs alone holds nothing to write about either."""
    empty = replace(TASK, task=with_text(text))
    error = refused(lambda: start(orchestrator, (TASK, empty)), grpc.StatusCode.INVALID_ARGUMENT)
    assert isinstance(error, InvalidInput)
    fields = [item.field for item in error.violations]
    assert "tasks[1].task.document.text" in fields
    assert all(item.allowed for item in error.violations)


def test_quiz_without_answer_or_question_is_refused_by_the_orchestrator(orchestrator: SyncOrchestratorClient) -> None:
    refused_input(
        lambda: start(orchestrator, with_quiz(Question("q1", "Colour?", ""))),
        **{"tasks[0].quiz.questions[0].answer": "not empty"},
    )
    refused_input(lambda: start(orchestrator, with_quiz()), **{"tasks[0].quiz.questions": "at least one question"})


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


def test_retention_question_longer_than_the_context_is_refused(orchestrator: SyncOrchestratorClient) -> None:
    retention = Quiz((Question("r1", LONG, "Paris"),))
    refused_input(
        lambda: orchestrator.start_run("refused", yaml.safe_dump(CONFIG), (TASK,), retention),
        **{"retention_quiz.questions[0].text": f"at most {CONTEXT} tokens"},
    )


# Settings and keys of a run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_an_option_that_is_no_finite_number_is_named(orchestrator: SyncOrchestratorClient, value: float) -> None:
    update = {"algorithm": "dpo", "options": {"beta": value}}
    refused_input(lambda: start(orchestrator, update=update), config__update__options__beta="finite number")


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


def test_unknown_key_of_a_run_is_named_with_those_allowed(orchestrator: SyncOrchestratorClient) -> None:
    refused_input(
        lambda: start(orchestrator, colour="red", inner_loop={"rnak": 4}),
        config__colour="candidates",
        config__inner_loop__rnak="rank",
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

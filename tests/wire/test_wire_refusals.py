"""What must not pass the wire is refused, with every field named."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.policy import CandidateGroup, Format, Parser, Policy, UpdateRequest, UpdateResult, UpdateSettings
from tutelage.domain.self_edit import Directives
from tutelage.v1 import evaluation_pb2, self_edit_pb2, task_pb2
from tutelage.wire.evaluation import (
    evaluation_key_from_wire,
    inner_loop_settings_from_wire,
    inner_loop_settings_to_wire,
)
from tutelage.wire.policy import (
    format_to_wire,
    update_request_from_wire,
    update_request_to_wire,
    update_settings_from_wire,
    update_settings_to_wire,
)
from tutelage.wire.self_edit import directives_to_wire, self_edit_from_wire
from tutelage.wire.task import quiz_from_wire
from tutelage.wire.update_result import update_result_from_wire, update_result_to_wire


def _fields(error: InvalidInput) -> set[str]:
    return {violation.field for violation in error.violations}


def test_an_empty_key_names_all_that_is_missing() -> None:
    with pytest.raises(InvalidInput) as caught:
        evaluation_key_from_wire(evaluation_pb2.EvaluationKey())
    missing = [
        "base_model",
        "base_revision",
        "quantisation",
        "self_edit",
        "quiz",
        "graders",
        "settings",
        "engine_revision",
    ]
    assert _fields(caught.value) == {f"key.{name}" for name in missing}


@pytest.mark.parametrize(
    ("metrics", "first_loss", "field"),
    [
        ({"kl": math.nan}, 0.5, "result.metrics.kl"),
        ({"kl": math.inf}, 0.5, "result.metrics.kl"),
        ({"": 1.0}, 0.5, "result.metrics"),
        ({"n" * 101: 1.0}, 0.5, "result.metrics"),
        ({str(number): 1.0 for number in range(129)}, 0.5, "result.metrics"),
        ({"kl": 1.0}, math.nan, "result.first_loss"),
    ],
)
def test_what_a_trainer_logged_has_bounds(metrics: dict[str, float], first_loss: float, field: str) -> None:
    policy = Policy("v", "p", "run", 1, "grpo", "d", "u", datetime(2026, 1, 1, tzinfo=UTC))
    sent = update_result_to_wire(UpdateResult(policy, "u", True, 3, 1.5, metrics=metrics, first_loss=first_loss))
    with pytest.raises(InvalidInput) as caught:
        update_result_from_wire(sent)
    assert _fields(caught.value) == {field}


def test_faults_deep_in_a_message_have_dotted_paths() -> None:
    edit = self_edit_pb2.SelfEdit(
        documents=[
            self_edit_pb2.TrainingDocument(text=self_edit_pb2.TextDocument(text="fine")),
            self_edit_pb2.TrainingDocument(text=self_edit_pb2.TextDocument(text="  ")),
            self_edit_pb2.TrainingDocument(),
            self_edit_pb2.TrainingDocument(
                chat=self_edit_pb2.ChatDocument(messages=[self_edit_pb2.ChatMessage(content="no role")])
            ),
        ],
        directives=self_edit_pb2.Directives(learning_rate=math.nan),
    )
    with pytest.raises(InvalidInput) as caught:
        self_edit_from_wire(edit)
    assert _fields(caught.value) == {
        "self_edit.documents[1].text.text",
        "self_edit.documents[2].content",
        "self_edit.documents[3].chat.messages[0].role",
        "self_edit.directives.learning_rate",
    }


def test_a_quiz_needs_answers_and_ids_of_its_own() -> None:
    quiz = task_pb2.Quiz(
        questions=[task_pb2.Question(id="1", text="a", answer="b"), task_pb2.Question(id="1", text="a", aliases=[""])]
    )
    with pytest.raises(InvalidInput) as caught:
        quiz_from_wire(quiz)
    assert _fields(caught.value) == {
        "quiz.questions[1].id",
        "quiz.questions[1].answer",
        "quiz.questions[1].aliases[0]",
    }


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_must_be_above_zero(value: float) -> None:
    message = inner_loop_settings_to_wire(InnerLoopSettings(learning_rate=value))
    with pytest.raises(InvalidInput, match=r"settings\.learning_rate"):
        inner_loop_settings_from_wire(message)


def test_a_number_too_large_for_the_wire_is_bad_input() -> None:
    with pytest.raises(InvalidInput, match=r"directives\.epochs"):
        directives_to_wire(Directives(epochs=10**12))
    with pytest.raises(InvalidInput, match=r"format\.max_documents"):
        format_to_wire(Format("own", "Write.", Parser.LINES, max_documents=10**12))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"beta": math.nan}, "settings.options.beta"),
        ({"beta": -math.inf}, "settings.options.beta"),
        ({"beta": 10**400}, "settings.options.beta"),
        ({"deep": {"list": [1, 10**5000]}}, "settings.options.deep.list[1]"),
    ],
)
def test_an_option_that_is_no_number_of_json_is_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        update_settings_to_wire(UpdateSettings(options=options))
    assert [item.field for item in caught.value.violations] == [field]


def test_options_that_a_foreign_client_sends_are_refused_as_well() -> None:
    message = update_settings_to_wire(UpdateSettings(options={"beta": 0.5}))
    assert update_settings_from_wire(message).options == {"beta": 0.5}
    message.options.fields["beta"].number_value = math.nan
    with pytest.raises(InvalidInput, match=r"settings\.options\.beta"):
        update_settings_from_wire(message)


def test_an_update_starts_with_its_header_and_has_one() -> None:
    request = UpdateRequest("p0", "rest_em", UpdateSettings(), (CandidateGroup("g", ()),), 1, "run", 1)
    header, group = update_request_to_wire(request)
    with pytest.raises(InvalidInput, match="header"):
        update_request_from_wire([group, header])
    with pytest.raises(InvalidInput, match=r"groups\[1\]"):
        update_request_from_wire([header, group, header])
    with pytest.raises(InvalidInput, match="header"):
        update_request_from_wire([])


def test_a_learning_rate_of_nothing_is_not_taken_for_none() -> None:
    with pytest.raises(InvalidInput, match=r"settings\.learning_rate: '0'.*nothing for the algorithm's own"):
        update_settings_to_wire(UpdateSettings(learning_rate=0.0))
    message = update_settings_to_wire(UpdateSettings())
    assert update_settings_from_wire(message).learning_rate is None
    message.learning_rate = -1e-4
    with pytest.raises(InvalidInput, match=r"settings\.learning_rate"):
        update_settings_from_wire(message)


def test_what_an_enum_may_be_is_told_once() -> None:
    """Leaving the handling of stale candidates out means the same as `drop`, which is no second value."""
    message = update_settings_to_wire(UpdateSettings())
    message.stale = 99  # type: ignore[assignment]
    with pytest.raises(InvalidInput) as caught:
        update_settings_from_wire(message)
    assert [(item.field, item.allowed) for item in caught.value.violations] == [
        ("settings.stale", "one of drop, weight")
    ]

"""What goes onto the wire comes back equal."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.domain.description import EvaluationPhase, EvaluationProgress, EvaluationState, EvaluationStatus
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import (
    Answer,
    Bounds,
    EvaluationKey,
    EvaluationReport,
    Failure,
    InnerLoopSettings,
    QuizResult,
    TrainingCost,
)
from tutelage.domain.policy import (
    LONGEST_METRIC,
    Candidate,
    CandidateGroup,
    Format,
    Parser,
    Policy,
    ScoredCandidate,
    StaleCandidates,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
)
from tutelage.domain.run import RunEvent, RunPhase, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.self_edit import (
    ChatDocument,
    ChatMessage,
    Directives,
    LossMask,
    Rejection,
    RejectionReason,
    Role,
    Schedule,
    SelfEdit,
    TextDocument,
)
from tutelage.domain.task import Demonstration, DocumentTask, FewShotTask, Question, Quiz, Task
from tutelage.v1 import evaluation_pb2, orchestrator_service_pb2, policy_pb2, self_edit_pb2
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire.evaluation import (
    bounds_from_wire,
    bounds_to_wire,
    evaluation_key_from_wire,
    evaluation_key_to_wire,
    evaluation_outcome_from_wire,
    evaluation_outcome_to_wire,
    evaluation_status_from_wire,
    evaluation_status_to_wire,
)
from tutelage.wire.policy import (
    candidate_from_wire,
    candidate_to_wire,
    format_from_wire,
    format_to_wire,
    update_request_from_wire,
    update_request_to_wire,
)
from tutelage.wire.run import run_event_from_wire, run_event_to_wire, run_summary_from_wire, run_summary_to_wire
from tutelage.wire.self_edit import self_edit_from_wire, self_edit_to_wire
from tutelage.wire.task import task_with_quiz_from_wire, task_with_quiz_to_wire
from tutelage.wire.update_result import update_result_from_wire, update_result_to_wire

PROPERTY = settings(max_examples=60, deadline=None)

FREE = st.text(max_size=20)
TEXT = FREE.filter(lambda value: bool(value.strip()))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
NOT_NEGATIVE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
INT32 = st.integers(-(2**31), 2**31 - 1)
COUNT = st.integers(0, 2**31 - 1)
LEAST_ONE = st.integers(1, 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))


def tuples(of: st.SearchStrategy, least: int = 0) -> st.SearchStrategy:
    return st.lists(of, min_size=least, max_size=3).map(tuple)


CHATS = st.builds(
    lambda messages, last: ChatDocument((*messages, last)),
    tuples(st.builds(ChatMessage, st.sampled_from(Role), FREE, st.booleans())),
    st.builds(ChatMessage, st.sampled_from(Role), TEXT, st.booleans()),
)
DIRECTIVES = st.builds(
    Directives,
    st.none() | FINITE,
    st.none() | INT32,
    st.none() | INT32,
    st.none() | st.sampled_from(LossMask),
)
SELF_EDITS = st.builds(SelfEdit, tuples(st.builds(TextDocument, TEXT) | CHATS), DIRECTIVES)
QUESTIONS = st.builds(Question, TEXT, TEXT, TEXT, FREE, tuples(TEXT), FREE)
QUIZZES = st.lists(QUESTIONS, max_size=3, unique_by=lambda q: q.id).map(lambda items: Quiz(tuple(items)))
FULL_QUIZZES = QUIZZES.filter(lambda quiz: bool(quiz.questions))
SETTINGS = st.builds(
    InnerLoopSettings,
    LEAST_ONE,
    POSITIVE,
    tuples(TEXT),
    POSITIVE,
    LEAST_ONE,
    LEAST_ONE,
    st.sampled_from(Schedule),
    st.sampled_from(LossMask),
    NOT_NEGATIVE,
    NOT_NEGATIVE,
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
)
KEYS = st.builds(
    EvaluationKey, TEXT, TEXT, TEXT, FREE, SELF_EDITS, FULL_QUIZZES, QUIZZES, tuples(TEXT, 1), SETTINGS, TEXT, INT64
)
SCORES = st.dictionaries(TEXT, FINITE, max_size=3)
RESULTS = st.builds(QuizResult, tuples(st.builds(Answer, FREE, FREE, SCORES)), SCORES)
COSTS = st.builds(TrainingCost, COUNT, COUNT, COUNT, FINITE, FINITE, NOT_NEGATIVE, NOT_NEGATIVE, st.booleans())
REPORTS = st.builds(
    EvaluationReport,
    TEXT,
    RESULTS,
    RESULTS,
    RESULTS,
    RESULTS,
    SETTINGS,
    COSTS,
    st.floats(0, 1),
    TIMES,
    tuples(TEXT),
)
REJECTIONS = st.builds(Rejection, st.sampled_from(RejectionReason), FREE, FREE, FREE, FREE)
OUTCOMES = REPORTS | REJECTIONS | st.builds(Failure, FREE, st.booleans())
CANDIDATES = st.builds(
    Candidate, COUNT, TEXT, FREE, FREE, SELF_EDITS | REJECTIONS, st.binary(max_size=30), COUNT, INT64, COUNT
)
GROUPS = st.builds(
    CandidateGroup, TEXT, tuples(st.builds(ScoredCandidate, TEXT, st.binary(max_size=30), st.none() | FINITE))
)
UPDATES = st.builds(
    UpdateRequest,
    TEXT,
    TEXT,
    st.builds(
        UpdateSettings,
        LEAST_ONE,
        POSITIVE,
        st.none() | POSITIVE,
        LEAST_ONE,
        LEAST_ONE,
        FINITE,
        LEAST_ONE,
        st.sampled_from(StaleCandidates),
        st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | FINITE | st.text(max_size=5), max_size=3),
    ),
    tuples(GROUPS),
    INT64,
    FREE,
    COUNT,
)
TASKS = st.builds(
    Task,
    TEXT,
    st.builds(DocumentTask, FREE, TEXT) | st.builds(FewShotTask, FREE, tuples(st.builds(Demonstration, FREE, FREE), 1)),
)


@PROPERTY
@given(SELF_EDITS)
def test_self_edit(edit: SelfEdit) -> None:
    wire = self_edit_to_wire(edit).SerializeToString()
    assert self_edit_from_wire(self_edit_pb2.SelfEdit.FromString(wire)) == edit


@PROPERTY
@given(KEYS)
def test_evaluation_key_keeps_its_id(key: EvaluationKey) -> None:
    wire = evaluation_key_to_wire(key).SerializeToString()
    back = evaluation_key_from_wire(evaluation_pb2.EvaluationKey.FromString(wire))
    assert back == key
    assert back.id == key.id


@PROPERTY
@given(OUTCOMES)
def test_outcome(outcome: EvaluationReport | Rejection | Failure) -> None:
    wire = evaluation_outcome_to_wire(outcome).SerializeToString()
    assert evaluation_outcome_from_wire(evaluation_pb2.EvaluationOutcome.FromString(wire)) == outcome


@PROPERTY
@given(CANDIDATES)
def test_candidate(candidate: Candidate) -> None:
    wire = candidate_to_wire(candidate).SerializeToString()
    assert candidate_from_wire(policy_pb2.Candidate.FromString(wire)) == candidate


@PROPERTY
@given(UPDATES)
def test_update_request(request: UpdateRequest) -> None:
    wire = [message.SerializeToString() for message in update_request_to_wire(request)]
    assert update_request_from_wire(map(teacher_pb.UpdatePolicyRequest.FromString, wire)) == request


@PROPERTY
@given(st.builds(TaskWithQuiz, TASKS, FULL_QUIZZES))
def test_task_with_quiz(item: TaskWithQuiz) -> None:
    wire = task_with_quiz_to_wire(item).SerializeToString()
    back = task_with_quiz_from_wire(orchestrator_service_pb2.TaskWithQuiz.FromString(wire))
    assert back == item
    # Equality passes over it.
    assert [each.support for each in back.quiz.questions] == [each.support for each in item.quiz.questions]


@PROPERTY
@given(
    st.builds(
        RunSummary,
        TEXT,
        st.sampled_from(RunState),
        st.sampled_from(RunPhase),
        *[COUNT] * 4,
        st.none() | FINITE,
        st.none() | NOT_NEGATIVE,
        FREE,
        FREE,
        TIMES,
        st.none() | TIMES,
        COUNT,
        COUNT,
    )
)
def test_run_summary(run: RunSummary) -> None:
    wire = run_summary_to_wire(run).SerializeToString()
    assert run_summary_from_wire(orchestrator_service_pb2.RunSummary.FromString(wire)) == run


@PROPERTY
@given(st.builds(RunEvent, INT64, TIMES, TEXT, st.dictionaries(FREE, FREE | FINITE | st.none() | st.lists(FREE))))
def test_run_event(event: RunEvent) -> None:
    wire = run_event_to_wire(event).SerializeToString()
    assert run_event_from_wire(orchestrator_service_pb2.RunEvent.FromString(wire)) == event


@PROPERTY
@given(st.builds(Format, TEXT, TEXT, st.sampled_from(Parser), st.booleans(), COUNT))
def test_format(item: Format) -> None:
    assert format_from_wire(policy_pb2.Format.FromString(format_to_wire(item).SerializeToString())) == item


@pytest.mark.parametrize("state", list(EvaluationState))
@pytest.mark.parametrize("phase", list(EvaluationPhase))
def test_status_and_bounds(state: EvaluationState, phase: EvaluationPhase) -> None:
    status = EvaluationStatus(state, EvaluationProgress(phase, 1, 2, 3.5), Failure("gone", False, True))
    wire = evaluation_status_to_wire(status).SerializeToString()
    assert evaluation_status_from_wire(student_pb.GetEvaluationResponse.FromString(wire)) == status
    assert bounds_from_wire(bounds_to_wire(Bounds(clamp=True))) == Bounds(clamp=True)


METRICS = st.dictionaries(st.text(min_size=1, max_size=LONGEST_METRIC), FINITE, max_size=5)


@PROPERTY
@given(METRICS, st.none() | FINITE, st.none() | FINITE)
def test_what_an_updates_trainer_logged(metrics: dict[str, float], first: float | None, last: float | None) -> None:
    policy = Policy("v", "p", "run", 1, "grpo", "d", "u", datetime(2026, 1, 1, tzinfo=UTC))
    result = UpdateResult(policy, "u", True, 3, 1.5, metrics=metrics, first_loss=first, last_loss=last)
    sent = teacher_pb.UpdateResult.FromString(update_result_to_wire(result).SerializeToString())
    assert update_result_from_wire(sent) == result


def test_what_an_update_learnt_from() -> None:
    policy = Policy("v", "p", "run", 1, "grpo", "d", "u", datetime(2026, 1, 1, tzinfo=UTC))
    result = UpdateResult(policy, "u", True, 3, 1.5, "", 1, 2, 5, 6, {"1/t/0": 0.5, "1/t/1": -0.25, "1/t/2": 0.0})
    sent = teacher_pb.UpdateResult.FromString(update_result_to_wire(result).SerializeToString())
    assert update_result_from_wire(sent) == result
    # A teacher that is older than what its trainer logged.
    assert (result.metrics, result.first_loss, result.last_loss) == ({}, None, None)
    sent.learnt[1].weight = math.nan
    with pytest.raises(InvalidInput, match=r"learnt\.weight"):
        update_result_from_wire(sent)

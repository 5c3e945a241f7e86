"""The gate: however many commits pass it, a student remembers as much as was asked; what is not known does not pass."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.commit_gate import refusal
from orchestrator.run_config import RunConfig
from tutelage.domain.evaluation import Answer, EvaluationReport, InnerLoopSettings, QuizResult, TrainingCost
from tutelage.settings import parse_settings


def asked(**gate: float | None) -> RunConfig:
    return parse_settings({"students": ["a"], "commit": {"min_gain": 0.0} | gate}, RunConfig)


def scored(loglik: float | None, contains: float = 0.0) -> QuizResult:
    scores = {"contains": contains} | ({} if loglik is None else {"loglik": loglik})
    return QuizResult.of((Answer("r", "text", scores),))


def report(before: float, after: float | None) -> EvaluationReport:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    loop, cost = InnerLoopSettings(), TrainingCost()
    return EvaluationReport("e", scored(-2.0), scored(-1.0, 1.0), scored(before), scored(after), loop, cost, 0.0, at)


@given(st.lists(st.floats(0, 0.49), min_size=1, max_size=30), st.floats(-5, -1))
def test_many_losses_that_a_commit_may_make_never_sum_to_more_than_may_be_lost(
    losses: list[float], least: float
) -> None:
    config, remembered = asked(max_retention_loss=0.5, min_retention=least), -1.0
    for loss in losses:
        why_not = refusal(report(remembered, remembered - loss), config)
        assert bool(why_not) == (remembered - loss < least)
        if not why_not:
            remembered -= loss
        assert remembered >= least


def test_what_has_no_score_does_not_pass() -> None:
    assert "no score by loglik" in refusal(report(-1.0, None), asked(min_retention=-9.0))
    assert not refusal(report(-1.0, None), asked())

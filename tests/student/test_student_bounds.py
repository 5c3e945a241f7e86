"""Directives are held to the bounds; settings of the run out of bounds are the run's fault."""

from __future__ import annotations

import math

import pytest

from student.bounds import Effective, check_settings, effective_settings, steps_of, too_large
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.evaluation import Bounds, InnerLoopSettings
from tutelage.domain.self_edit import Directives, LossMask, Rejection, RejectionReason

SETTINGS = InnerLoopSettings(rank=16, alpha=32, epochs=8, batch_size=4)


def test_no_directives_leave_the_settings() -> None:
    assert effective_settings(SETTINGS, Directives(), Bounds()) == Effective(SETTINGS)


def test_a_rank_keeps_the_scale() -> None:
    result = effective_settings(SETTINGS, Directives(rank=64, loss_mask=LossMask.ALL), Bounds())
    assert isinstance(result, Effective)
    assert (result.settings.rank, result.settings.alpha, result.settings.loss_mask) == (64, 128, LossMask.ALL)


@pytest.mark.parametrize(
    ("directives", "field", "value"),
    [
        (Directives(learning_rate=0.5), "directives.learning_rate", "0.5"),
        (Directives(epochs=0), "directives.epochs", "0"),
        (Directives(rank=129), "directives.rank", "129"),
        (Directives(learning_rate=math.nan), "directives.learning_rate", "nan"),
    ],
)
def test_out_of_bounds_is_rejected_with_field_value_and_range(directives: Directives, field: str, value: str) -> None:
    result = effective_settings(SETTINGS, directives, Bounds())
    assert isinstance(result, Rejection)
    assert (result.reason, result.field, result.value) == (RejectionReason.OUT_OF_BOUNDS, field, value)
    assert " to " in result.allowed


def test_both_ends_are_included_and_clamping_names_its_fields() -> None:
    bounds = Bounds(clamp=True)
    result = effective_settings(SETTINGS, Directives(learning_rate=1e-2, epochs=30), bounds)
    assert isinstance(result, Effective)
    assert result.clamped_fields == ()
    result = effective_settings(SETTINGS, Directives(learning_rate=math.inf, rank=0), bounds)
    assert isinstance(result, Effective)
    assert result.clamped_fields == ("learning_rate", "rank")
    assert (result.settings.learning_rate, result.settings.rank) == (1e-2, 1)
    # A whole number, as JSON may write it.
    result = effective_settings(SETTINGS, Directives(learning_rate=1), bounds)
    assert isinstance(result, Effective)
    assert result.settings.learning_rate == 1e-2
    assert isinstance(effective_settings(SETTINGS, Directives(learning_rate=math.nan), bounds), Rejection)


def test_all_wrong_settings_of_a_run_are_named() -> None:
    wrong = InnerLoopSettings(rank=0, learning_rate=1.0, batch_size=0, alpha=math.nan)
    with pytest.raises(InvalidInput) as caught:
        check_settings(wrong, Bounds())
    assert {violation.field for violation in caught.value.violations} == {
        "settings.rank",
        "settings.learning_rate",
        "settings.batch_size",
        "settings.alpha",
    }


def test_an_alpha_that_would_fail_its_whole_pass_is_refused_with_the_range() -> None:
    check_settings(InnerLoopSettings(alpha=1e6), Bounds())
    for alpha in (1e300, 1.1e6, math.inf, math.nan, 0.0, -1.0):
        with pytest.raises(InvalidInput) as caught:
            check_settings(InnerLoopSettings(alpha=alpha), Bounds())
        (violation,) = caught.value.violations
        assert violation == FieldViolation("settings.alpha", str(alpha), "above 0, at most 1,000,000")


def test_sizes() -> None:
    assert steps_of(9, SETTINGS) == 24
    assert too_large([10] * 9, SETTINGS, Bounds(), 2048) is None
    for counts, bounds, context, field, value in (
        ([10] * 129, Bounds(), 2048, "documents", "129"),
        ([10, 1025], Bounds(), 2048, "documents[1].tokens", "1025"),
        ([10, 600], Bounds(), 512, "documents[1].tokens", "600"),
        ([10] * 9, Bounds(max_steps=23), 2048, "steps", "24"),
    ):
        result = too_large(counts, SETTINGS, bounds, context)
        assert result is not None
        assert (result.reason, result.field, result.value) == (RejectionReason.TOO_LARGE, field, value)

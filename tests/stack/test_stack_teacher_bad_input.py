"""Bad input to a real teacher over gRPC: the right status with field and allowed values, and it goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.stack.spoilt_requests import CONTEXT, LONG, NOISE, refused_input, with_text, write
from tutelage.client import SyncTeacherClient
from tutelage.domain.self_edit import Rejection, RejectionReason


def test_format_without_prompt_is_refused_by_the_teacher(teacher: SyncTeacherClient) -> None:
    refused_input(lambda: write(teacher, format=replace(NOISE, prompt=" ")), format__prompt="not empty")


def test_empty_document_is_refused_by_the_teacher(teacher: SyncTeacherClient) -> None:
    refused_input(lambda: write(teacher, with_text("\n")), task__document__text="not empty")


def test_document_longer_than_the_context_is_refused_by_the_teacher(teacher: SyncTeacherClient) -> None:
    refused_input(lambda: write(teacher, with_text(LONG)), task__document__text=f"at most {CONTEXT} tokens")


@pytest.mark.parametrize("sampling", [{"temperature": 1e-320}, {"top_p": 1e-320}])
def test_sampling_that_float32_cannot_hold_is_refused_by_the_teacher(
    teacher: SyncTeacherClient, sampling: dict[str, Any]
) -> None:
    (field,) = sampling
    refused_input(lambda: write(teacher, **sampling), **{f"sampling.{field}": "1e-06 to 1"})
    assert write(teacher, temperature=1e-6, top_p=1e-6)


def test_directives_that_are_not_json_are_a_rejected_candidate(teacher: SyncTeacherClient) -> None:
    # A random model writes noise, which is no JSON object.
    (candidate,) = write(teacher, format=replace(NOISE, directives=True))
    assert isinstance(candidate.result, Rejection)
    assert (candidate.result.reason, candidate.result.field) == (RejectionReason.UNPARSABLE, "directives")
    assert candidate.result.allowed == "a JSON object on the first line"

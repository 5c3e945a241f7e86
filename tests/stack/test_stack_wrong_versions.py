"""A wrong model, policy or version: real services refuse it, and say what is known or allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.stack.spoilt_requests import refused, refused_input, study, write
from tutelage.client import SyncStudentClient, SyncTeacherClient

if TYPE_CHECKING:
    from tests.stack.conftest import Service


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

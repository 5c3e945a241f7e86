"""The check that needs no answer key: what is asked, what an answer proves, and a real teacher that is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.answer_check import ANSWER_TOKENS, agrees, prompts_of, verdict, verdicts
from teacher.config import TeacherSettings
from teacher.service import TeacherService
from tutelage.client import TeacherClient
from tutelage.domain.errors import Unavailable
from tutelage.domain.made_quiz import Dropped, QuizCheck
from tutelage.domain.task import DocumentTask, Question
from tutelage.models.tiny import write_tiny_model
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.interceptors import ErrorInterceptor

LAMP = DocumentTask("The Orrin lamp", "The Orrin lamp burns whale wax. It was hung in 1347.")
BURNS = Question("made-1", "What does it burn?", "whale wax", "The Orrin lamp")


def test_only_the_second_prompt_has_the_text_and_none_the_answer() -> None:
    without, having = prompts_of(LAMP, BURNS, QuizCheck.BOTH)
    assert without.endswith("Question: The Orrin lamp: What does it burn?")
    assert having.endswith("Question: What does it burn?")
    assert LAMP.text in having
    assert LAMP.text not in without
    assert BURNS.answer not in without
    assert prompts_of(LAMP, BURNS, QuizCheck.UNKNOWN) == (without,)
    assert prompts_of(LAMP, BURNS, QuizCheck.NONE) == ()
    named = replace(BURNS, text="What does the Orrin lamp burn?")
    assert prompts_of(LAMP, named, QuizCheck.UNKNOWN)[0].endswith("Question: What does the Orrin lamp burn?")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Whale wax", True),
        ("It burns whale wax, which is costly.", True),
        ("whale-wax", True),
        ("the wax of whales", True),
        ("Oil", False),
        ("", False),
        ("It does not burn whale oil", False),
    ],
)
def test_an_answer_agrees_in_other_words_too(answer: str, right: bool) -> None:
    assert agrees(answer, BURNS) is right


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ((), None),
        (("oil",), None),
        (("whale wax",), Dropped.KNOWN),
        (("oil", "whale wax"), None),
        (("oil", "oil"), Dropped.UNANSWERED),
        (("whale wax", "whale wax"), Dropped.KNOWN),
        (("whale wax", "oil"), Dropped.KNOWN),
    ],
)
def test_verdicts(answers: Sequence[str], why: Dropped | None) -> None:
    assert verdict(BURNS, answers) is why


class _CutOff:
    """A teacher whose stream ends before its last answer."""

    async def answer_prompts(self, prompts: Sequence[str], **_: Any) -> AsyncIterator[tuple[int, str]]:
        for place in range(len(prompts) - 1):
            yield place, "oil"


def test_an_answer_that_is_missing_is_a_fault_and_no_verdict() -> None:
    teacher: Any = _CutOff()
    with pytest.raises(Unavailable, match="1 of 2"):
        asyncio.run(verdicts(teacher, [(LAMP, BURNS)], QuizCheck.BOTH, first_policy="0", timeout_s=5))


def test_a_real_teacher_is_asked_once_for_all(tmp_path: Path) -> None:
    """A tiny random model: what it says is nonsense, but always the same; a made answer can be that very nonsense."""
    model = str(write_tiny_model(tmp_path / "model", hidden=64, seed=3, context=1024))
    loading = {"model": model, "threads": 1, "quantisation": "none", "compute_dtype": "float32", "device": "cpu"}
    settings = TeacherSettings.model_validate({**loading, "data_dir": tmp_path})
    calls: list[int] = []

    class Counting(TeacherService):
        async def AnswerPrompts(self, request: Any, context: Any) -> AsyncIterator[Any]:
            calls.append(len(request.prompts))
            async for each in super().AnswerPrompts(request, context):
                yield each

    async def talk() -> None:
        service = Counting(settings)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        service.register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await service.start()
        try:
            async with TeacherClient(ChannelSettings(address=f"127.0.0.1:{port}")) as client:
                first = (await client.describe()).initial_policy_version
                prompts = prompts_of(LAMP, BURNS, QuizCheck.BOTH)
                stream = client.answer_prompts(prompts, policy_version=first, max_new_tokens=ANSWER_TOKENS)
                says = {place: text async for place, text in stream}
                assert says[0].strip() != says[1].strip()
                calls.clear()
                asked = [
                    (LAMP, replace(BURNS, answer=says[1])),
                    (LAMP, replace(BURNS, answer=says[0])),
                    (LAMP, replace(BURNS, answer="xyzzy")),
                ]

                async def told(check: QuizCheck) -> list[Dropped | None]:
                    return await verdicts(client, asked, check, first_policy=first, timeout_s=60)

                assert await told(QuizCheck.BOTH) == [None, Dropped.KNOWN, Dropped.UNANSWERED]
                assert await told(QuizCheck.UNKNOWN) == [None, Dropped.KNOWN, None]
                assert await told(QuizCheck.NONE) == [None] * 3
                assert calls == [6, 3]
        finally:
            await server.stop(0)
            await service.stop()

    asyncio.run(asyncio.wait_for(talk(), 200))

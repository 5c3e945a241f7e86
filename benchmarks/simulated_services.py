"""A teacher and students that answer over real gRPC from processes of their own, with invented texts and scores.

A student takes a fixed time for an evaluation, has one slot, and scores an edit by a hash: what is measured against it
is the orchestrator alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import grpc

from tutelage.domain.description import StudentDescription, TeacherDescription
from tutelage.domain.evaluation import Answer, Bounds, EvaluationReport, QuizResult, TrainingCost
from tutelage.domain.policy import Candidate, Format, Parser, Policy, UpdateResult
from tutelage.domain.self_edit import SelfEdit, TextDocument
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.v1 import student_service_pb2_grpc as student_grpc
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.v1 import teacher_service_pb2_grpc as teacher_grpc
from tutelage.wire import description as wd
from tutelage.wire import evaluation as we
from tutelage.wire import policy as wp
from tutelage.wire.update_result import update_result_to_wire

AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Tally:
    """What the students of one process saw."""

    first_start: float = 0.0
    last_end: float = 0.0
    evaluations: int = 0
    doubled: int = 0
    overfull: int = 0


class SimulatedStudent(student_grpc.StudentServiceServicer):
    """One slot; an evaluation takes `seconds`."""

    def __init__(self, seconds: float, tally: Tally) -> None:
        self._seconds, self._tally = seconds, tally
        self._done: set[str] = set()
        self._busy = 0

    async def Describe(self, request: Any, context: Any) -> Any:
        return wd.student_description_to_wire(
            StudentDescription(
                base_model="simulated",
                base_revision="r",
                quantisation="none",
                device="cpu",
                compute_dtype="float32",
                parameters=1,
                slots=1,
                free_slots=1 - min(1, self._busy),
                queued=0,
                bounds=Bounds(),
                graders=("contains", "loglik"),
                engine_revision="1",
                deterministic=True,
                context_length=512,
                version="0",
            )
        )

    async def Evaluate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        tally = self._tally
        tally.first_start = tally.first_start or time.time()
        self._busy += 1
        tally.overfull += self._busy > 1
        key = we.evaluation_key_from_wire(request.key)
        identity = key.id
        tally.doubled += identity in self._done
        await asyncio.sleep(self._seconds)
        self._done.add(identity)
        score = int(hashlib.sha256(identity.encode()).hexdigest()[:8], 16) / 2**32
        report = EvaluationReport(
            evaluation_id=identity,
            before=_answers(key.quiz.questions, 0.1),
            after=_answers(key.quiz.questions, score),
            retention_before=_answers(key.retention_quiz.questions, 1.0),
            retention_after=_answers(key.retention_quiz.questions, 1.0),
            effective_settings=key.settings,
            cost=TrainingCost(steps=1, tokens=1, supervised_tokens=1),
            answer_overlap=0.0,
            finished_at=AT,
        )
        tally.evaluations += 1
        tally.last_end = time.time()
        self._busy -= 1
        yield student_pb.EvaluateResponse(evaluation_id=identity, outcome=we.evaluation_outcome_to_wire(report))


def _answers(questions: Any, value: float) -> QuizResult:
    return QuizResult.of(tuple(Answer(each.id, "an answer", {"contains": value, "loglik": -1.0}) for each in questions))


class SimulatedTeacher(teacher_grpc.TeacherServiceServicer):
    """Writes at once; an update changes nothing but the version."""

    async def Describe(self, request: Any, context: Any) -> Any:
        return wd.teacher_description_to_wire(
            TeacherDescription(
                base_model="simulated",
                base_revision="r",
                quantisation="none",
                device="cpu",
                initial_policy_version="policy-0",
                latest_policy_version="policy-0",
                tokenizer_hash="t",
                context_length=512,
                formats=(Format("implications", "Write about {text}", Parser.LINES),),
                algorithms=("rest_em",),
                version="0",
            )
        )

    async def CheckUpdate(self, request: Any, context: Any) -> Any:
        return teacher_pb.CheckUpdateResponse()

    async def WriteSelfEdits(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for index in range(request.candidates):
            text = f"{request.task.id}, candidate {index} by {request.policy_version}. " + "What follows from it. " * 20
            edit = SelfEdit((TextDocument(text),))
            candidate = Candidate(
                index, request.policy_version, request.format.name, text, edit, b"rollout", 100, index
            )
            yield teacher_pb.WriteSelfEditsResponse(candidate=wp.candidate_to_wire(candidate))

    async def UpdatePolicy(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        request = wp.update_request_from_wire([message async for message in request_iterator])
        version = f"policy-{request.round}"
        policy = Policy(version, request.parent_version, request.run_id, request.round, "rest_em", "d", version, AT)
        yield teacher_pb.UpdatePolicyResponse(result=update_result_to_wire(UpdateResult(policy, version, True, 1, 0.0)))


async def _serve(pipe: Connection, students: int, seconds: float) -> None:
    tally = Tally()
    servers, addresses = [], []
    for number in range(students + 1):
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        if number < students:
            # What is left out is answered with UNIMPLEMENTED; only the stubs call it abstract.
            student = SimulatedStudent(seconds, tally)  # type: ignore[abstract]
            student_grpc.add_StudentServiceServicer_to_server(student, server)
        else:
            teacher = SimulatedTeacher()  # type: ignore[abstract]
            teacher_grpc.add_TeacherServiceServicer_to_server(teacher, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    pipe.send(addresses)
    await asyncio.to_thread(pipe.recv)
    pipe.send(tally)
    await asyncio.gather(*(server.stop(0) for server in servers))


def _run(pipe: Connection, students: int, seconds: float) -> None:
    asyncio.run(_serve(pipe, students, seconds))


class Simulation:
    """Processes with many simulated students each, and a teacher."""

    def __init__(self, students: int, seconds: float, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for number in range(processes):
            here, there = context.Pipe()
            share = students // processes + (number < students % processes)
            process = context.Process(target=_run, args=(there, share, seconds), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        answers = [pipe.recv() for pipe in self._pipes]
        self.students = [address for addresses in answers for address in addresses[:-1]]
        self.teacher = answers[0][-1]

    def stop(self) -> list[Tally]:
        """Ends all processes; what each saw."""
        tallies = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send("stop")
            tallies.append(pipe.recv())
            process.join(20)
        return tallies

"""A teacher's and a student's real engines in one process, as the benchmarks use them: no network, nothing faked."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry

from student.config import StudentSettings
from student.engine import StudentEngine
from student.evaluations import EvaluationStore
from student.metrics import StudentMetrics
from teacher.config import TeacherSettings
from teacher.engine import Writer
from teacher.formats import builtin_formats
from teacher.policies import PolicyStore
from teacher.updates import Updates
from tutelage.documents import read_tasks
from tutelage.domain.canonical import content_hash, derived_seed
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.policy import (
    Candidate,
    CandidateGroup,
    Sampling,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
    with_directives,
)
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import Rejection, SelfEdit, question_answer
from tutelage.domain.task import DocumentTask, Quiz
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import policy_pb2
from tutelage.wire.policy import candidate_from_wire, candidate_to_wire

Item = TypeVar("Item")
Result = TypeVar("Result")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "documents"
GRADERS = ("contains", "f1", "loglik")
SAMPLING = Sampling(max_new_tokens=160)
INNER_LOOP = InnerLoopSettings(rank=16, alpha=32, learning_rate=1e-3, epochs=4, batch_size=1)


@dataclass(frozen=True)
class Setup:
    """What a benchmark ran with; printed beside its figures."""

    model: str
    quantisation: str
    threads: int
    seed: int
    slots: int = 12
    """Evaluations trained side by side."""


class _OtherStore(EvaluationStore):
    """Another process's: it is read, and nothing in it expires by our hand."""

    def expire(self) -> None:
        return


class Classroom:
    """One teacher and one student."""

    def __init__(
        self,
        setup: Setup,
        inner_loop: InnerLoopSettings = INNER_LOOP,
        sampling: Sampling = SAMPLING,
        folder: Path | None = None,
        own: int = 0,
        update_threads: int | None = None,
    ) -> None:
        """With a `folder`, what was written and reported is kept in it, and a benchmark started again goes on from it.

        Processes that share a folder have a student each, by the number `own`, and read the others' reports.
        """
        self._folder = None if folder else tempfile.TemporaryDirectory(prefix="tutelage-benchmark-")
        root = folder or Path(self._folder.name if self._folder else "")
        model = str(write_tiny_model(root / "tiny", context=2048)) if setup.model == "tiny" else setup.model
        self.setup, self.inner_loop = setup, inner_loop
        self._sampling = replace(sampling, max_new_tokens=24) if setup.model == "tiny" else sampling
        quantisation = "none" if setup.model == "tiny" else setup.quantisation
        loading = {"model": model, "quantisation": quantisation, "threads": setup.threads}
        student = StudentSettings.model_validate(
            # Nobody watches a benchmark's evaluations, so their lease is longer than any of them; all may wait at once.
            {
                **loading,
                "max_queue": 10_000,
                "data_dir": root / f"student-{own}",
                "lease_s": 86400,
                "slots": setup.slots,
                "max_new_tokens": 24,
            }
        )
        teacher = TeacherSettings.model_validate(
            {**loading, "data_dir": root / "teacher", "update_threads": update_threads}
        )
        base = load_model(model, quantisation=student.quantisation, threads=setup.threads, dequantise="auto")
        self.student = StudentEngine(base, student, StudentMetrics(CollectorRegistry()))
        self._others = [
            _OtherStore(path, hold_s=student.hold_s, max_held_bytes=0)
            for path in sorted(root.glob("student-*"))
            if path != student.data_dir
        ]
        self._written = root / "written"
        self._written.mkdir(parents=True, exist_ok=True)
        writing = load_model(model, quantisation=teacher.quantisation, threads=setup.threads, dequantise="auto")
        self.policies = PolicyStore(teacher.data_dir / "policies", writing.revision)
        self.writer = Writer(writing, self.policies, teacher)
        self.updates = Updates(teacher, self.policies, self.writer.tokenizer_hash)
        self.formats = {known.name: known for known in builtin_formats()}
        self.formats |= {known.name: known for known in map(with_directives, builtin_formats())}
        self.described = self.student.describe()

    def close(self) -> None:
        self.updates.stop()
        self.student.close()
        for other in self._others:
            other.close()
        if self._folder:
            self._folder.cleanup()

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results in the order of the items, at work as many at once as the student has slots; it may be nested."""
        with ThreadPoolExecutor(self.setup.slots) as pool:
            return list(pool.map(work, items))

    def evaluate(
        self, item: TaskWithQuiz, edit: SelfEdit, *, adapter_version: str = "", repeat: int = 0
    ) -> tuple[str, EvaluationReport | Rejection]:
        """Its id and its outcome; a fault of the machine ends the benchmark."""
        own = self.described
        key = EvaluationKey(
            base_model=own.base_model,
            base_revision=own.base_revision,
            quantisation=own.quantisation,
            adapter_version=adapter_version,
            self_edit=edit,
            quiz=item.quiz,
            retention_quiz=Quiz(),
            graders=GRADERS,
            settings=self.inner_loop,
            engine_revision=own.engine_revision,
            seed=derived_seed(self.setup.seed, item.task.id, repeat),
        )
        for other in self._others:
            known = other.outcome(key.id)
            if known is not None:
                return key.id, known
        job = self.student.evaluate(key)
        job.done.wait()
        outcome: EvaluationOutcome | None = job.outcome
        if outcome is None or isinstance(outcome, Failure):
            raise RuntimeError(f"evaluation of {item.task.id} failed: {outcome}")
        return job.id, outcome

    def write(
        self,
        item: TaskWithQuiz,
        format_name: str,
        candidates: int,
        policy: str,
        purpose: str,
        sampling: Sampling | None = None,
    ) -> list[Candidate]:
        seed = derived_seed(self.setup.seed, purpose, item.task.id)
        known, sampling = self.formats[format_name], sampling or self._sampling
        parts = [item.task.id, known, candidates, sampling, policy, seed, self.writer.tokenizer_hash]
        kept = self._written / f"{content_hash(parts)}.json"
        if kept.exists():
            return [candidate_from_wire(_candidate(encoded)) for encoded in json.loads(kept.read_text())]
        written = list(self.writer.write(item.task, known, candidates, sampling, policy, seed))
        encoded = [base64.b64encode(candidate_to_wire(each).SerializeToString()).decode() for each in written]
        kept.write_text(json.dumps(encoded))
        return written

    def update(
        self, groups: Sequence[CandidateGroup], settings: UpdateSettings, parent: str, algorithm: str = "rest_em"
    ) -> UpdateResult:
        request = UpdateRequest(parent, algorithm, settings, tuple(groups), self.setup.seed, "benchmark", 1)
        results = [event for event in self.updates.update(request) if isinstance(event, UpdateResult)]
        return results[-1]


def _candidate(encoded: str) -> policy_pb2.Candidate:
    return policy_pb2.Candidate.FromString(base64.b64decode(encoded))


def documents(name: str, count: int, model: str, path: Path | None = None) -> list[TaskWithQuiz]:
    """The first documents of an example file, or of the file at `path`.

    A tiny model, with a byte a token, gets the first sentence of each.
    """
    items = read_tasks(path or EXAMPLES / f"{name}.jsonl", count)
    return [_first_sentence(item) for item in items] if model == "tiny" else items


def _first_sentence(item: TaskWithQuiz) -> TaskWithQuiz:
    content = item.task.content
    assert isinstance(content, DocumentTask)
    text = content.text.split(". ")[0][:150]
    return replace(item, task=replace(item.task, content=replace(content, text=text)))


def passage_only(item: TaskWithQuiz) -> SelfEdit:
    """The passage as the answer to a question about its title: what training on the document alone gives."""
    content = item.task.content
    assert isinstance(content, DocumentTask)
    return SelfEdit((question_answer(f"What do you know about {content.title}?", content.text),))


def quiz_itself(item: TaskWithQuiz) -> SelfEdit:
    """The quiz with its answers: the ceiling of an inner loop, never something a teacher may see."""
    pairs = [question_answer(question.text, question.answer) for question in item.quiz.questions]
    return SelfEdit((*passage_only(item).documents, *pairs))

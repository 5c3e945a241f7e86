"""A teacher's and a student's real engines in one process, as the benchmarks use them: no network, nothing faked."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry

from student.config import StudentSettings
from student.engine import StudentEngine
from student.metrics import StudentMetrics
from teacher.config import TeacherSettings
from teacher.engine import Writer
from teacher.formats import builtin_formats
from teacher.policies import PolicyStore
from teacher.updates import Updates
from tutelage.documents import read_tasks
from tutelage.domain.canonical import derived_seed
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.policy import Candidate, CandidateGroup, Sampling, UpdateRequest, UpdateResult, UpdateSettings
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import Rejection, SelfEdit, question_answer
from tutelage.domain.task import DocumentTask, Quiz
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model

Item = TypeVar("Item")
Result = TypeVar("Result")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "documents"
GRADERS = ("contains", "f1", "loglik")
INNER_LOOP = InnerLoopSettings(rank=16, alpha=32, learning_rate=1e-3, epochs=4, batch_size=1)


@dataclass(frozen=True)
class Setup:
    """What a benchmark ran with; printed beside its figures."""

    model: str
    quantisation: str
    threads: int
    seed: int
    slots: int = 8
    """Evaluations trained side by side by a student."""
    students: int = 1
    """Students of the same model that share the documents among them."""


class Classroom:
    """One teacher and one student."""

    def __init__(
        self,
        setup: Setup,
        inner_loop: InnerLoopSettings = INNER_LOOP,
        max_new_tokens: int = 160,
        folder: Path | None = None,
    ) -> None:
        """With a `folder`, reports are kept in it, and the same benchmark started again goes on from them."""
        self._folder = None if folder else tempfile.TemporaryDirectory(prefix="tutelage-benchmark-")
        root = folder or Path(self._folder.name if self._folder else "")
        model = str(write_tiny_model(root / "tiny", context=2048)) if setup.model == "tiny" else setup.model
        self.setup, self.inner_loop = setup, inner_loop
        self._sampling = Sampling(max_new_tokens=24 if setup.model == "tiny" else max_new_tokens)
        quantisation = "none" if setup.model == "tiny" else setup.quantisation
        loading = {"model": model, "quantisation": quantisation, "threads": setup.threads}
        student = StudentSettings.model_validate(
            # Nobody watches a benchmark's evaluations, so their lease is longer than any of them.
            {**loading, "data_dir": root / "student", "lease_s": 86400, "slots": setup.slots}
        )
        teacher = TeacherSettings.model_validate({**loading, "data_dir": root / "teacher"})
        self.students = [self._student(student, root / f"student-{i}") for i in range(setup.students)]
        self.student = self.students[0]
        # One candidate is sampled at a time here, and unpacking NF4 would be most of the work of each token.
        writing = load_model(model, quantisation=teacher.quantisation, threads=setup.threads, dequantise="once")
        self.policies = PolicyStore(teacher.data_dir / "policies", writing.revision)
        self.writer = Writer(writing, self.policies, teacher)
        self.updates = Updates(teacher, self.policies, self.writer.tokenizer_hash)
        self.formats = {known.name: known for known in builtin_formats()}
        self._own = self.student.describe()

    def _student(self, settings: StudentSettings, folder: Path) -> StudentEngine:
        base = load_model(settings.model, quantisation=settings.quantisation, threads=settings.threads)
        own = settings.model_copy(update={"data_dir": folder})
        return StudentEngine(base, own, StudentMetrics(CollectorRegistry()))

    def close(self) -> None:
        self.updates.stop()
        for student in self.students:
            student.close()
        if self._folder:
            self._folder.cleanup()

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """The results in the order of the items, worked on as many at once as the students have slots."""
        with ThreadPoolExecutor(self.setup.students * self.setup.slots) as pool:
            return list(pool.map(work, items))

    def evaluate(
        self, item: TaskWithQuiz, edit: SelfEdit, *, adapter_version: str = "", repeat: int = 0
    ) -> tuple[str, EvaluationReport | Rejection]:
        """Its id and its outcome; a fault of the machine ends the benchmark."""
        own = self._own
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
        # By the document, so that its baseline is answered once.
        job = self.students[zlib.crc32(item.task.id.encode()) % len(self.students)].evaluate(key)
        job.done.wait()
        outcome: EvaluationOutcome | None = job.outcome
        if outcome is None or isinstance(outcome, Failure):
            raise RuntimeError(f"evaluation of {item.task.id} failed: {outcome}")
        return job.id, outcome

    def write(
        self, item: TaskWithQuiz, format_name: str, candidates: int, policy: str, purpose: str
    ) -> list[Candidate]:
        seed = derived_seed(self.setup.seed, purpose, item.task.id)
        known = self.formats[format_name]
        return list(self.writer.write(item.task, known, candidates, self._sampling, policy, seed))

    def update(self, groups: Sequence[CandidateGroup], settings: UpdateSettings, parent: str) -> UpdateResult:
        request = UpdateRequest(parent, "rest_em", settings, tuple(groups), self.setup.seed, "benchmark", 1)
        results = [event for event in self.updates.update(request) if isinstance(event, UpdateResult)]
        return results[-1]


def documents(name: str, count: int, model: str) -> list[TaskWithQuiz]:
    """The first documents of an example file; a tiny model, with a byte a token, gets the first sentence of each."""
    items = read_tasks(EXAMPLES / f"{name}.jsonl", count)
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

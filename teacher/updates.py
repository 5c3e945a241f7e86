"""Updates of the policy: each runs once, in a process of its own, and its result is kept.

The same request attaches to the update that is running, or gets the stored result. Losing all watchers changes nothing.
An update that is interrupted leaves no trace but a work folder, removed when it is asked for again: the old versions
stay in force.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from teacher import metrics
from teacher.algorithms import with_own_rate
from teacher.config import TeacherSettings
from teacher.policies import PolicyStore, policy_from_json, policy_to_json, write_atomically
from teacher.step_means import StepMeans
from teacher.update_child import write_groups
from teacher.update_request import Lessons, check_request, data_hash, lessons_of, update_id
from tutelage.domain.description import UpdateProgress
from tutelage.domain.errors import DataLoss, FieldViolation, InvalidInput, NotFound, TutelageError, Unavailable
from tutelage.domain.policy import Policy, UpdateRequest, UpdateResult, UpdateSettings

_log = logging.getLogger(__name__)
_RESULT = "result.json"
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Environment of an update's process: it has all it needs, and tells nobody."""


def one_device(device: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The device of an update's process by its name there, and what its environment says so that it sees no other GPU.

    Trainers split their batches over all GPUs that they see, and TRL's refuse more than one.
    """
    kind, _, number = device.partition(":")
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    known = shown.split(",") if shown is not None else None
    place = int(number or 0)
    if kind == "cpu" or (known is not None and place >= len(known)):
        return device, {}
    return kind, {"CUDA_VISIBLE_DEVICES": known[place] if known is not None else str(place)}


@dataclasses.dataclass(frozen=True)
class _Trained(StepMeans):
    """What an update's process tells at its end; the most memory that it held is in bytes."""

    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int = 0


class _Job:
    """A running update and those who watch it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.progress = UpdateProgress()
        self.result: UpdateResult | None = None
        self.error: Exception | None = None

    def tell(self, progress: UpdateProgress) -> None:
        with self.changed:
            self.progress = progress
            self.changed.notify_all()

    def end(self, result: UpdateResult | None, error: Exception | None) -> None:
        with self.changed:
            self.result, self.error = result, error
            self.changed.notify_all()

    def watch(self, cancelled: Callable[[], bool]) -> Iterator[UpdateProgress | UpdateResult]:
        seen: UpdateProgress | None = None
        while not cancelled():
            with self.changed:
                if self.error is None and self.result is None and self.progress == seen:
                    self.changed.wait(timeout=0.5)
                progress, result, error = self.progress, self.result, self.error
            if progress != seen:
                seen = progress
                yield progress
            if error is not None:
                raise error
            if result is not None:
                yield result
                return


class Updates:
    """All updates of one teacher; one trains at a time, the others wait their turn."""

    def __init__(
        self, settings: TeacherSettings, policies: PolicyStore, tokenizer_hash: str, vocabulary: int = 2**31
    ) -> None:
        self._settings = settings
        self._policies = policies
        self._tokenizer_hash, self._vocabulary = tokenizer_hash, vocabulary
        self._folder = settings.data_dir / "updates"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._threads: list[threading.Thread] = []
        self._child: subprocess.Popen[str] | None = None
        self._stopping = False

    def update(
        self, request: UpdateRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[UpdateProgress | UpdateResult]:
        """Progress, then the result. InvalidInput, NotFound (parent) or PreconditionFailed before anything starts.

        InvalidInput also later, of what only the trainer sees: an option that this model cannot serve.
        """
        check_request(request, self._settings.max_rank)
        request = dataclasses.replace(request, settings=with_own_rate(request.algorithm, request.settings))
        parent = self._policies.get(request.parent_version)
        if wrong := self.shape_violations(parent.version, request.settings):
            raise InvalidInput(wrong)
        lessons = lessons_of(request, self._tokenizer_hash, self._policies.ages(parent.version), self._vocabulary)
        name = update_id(request)
        job, stored = self._job_or_stored(name, request, parent, lessons)
        if job is None:
            assert stored is not None
            yield stored
            return
        yield from job.watch(cancelled)

    def shape_violations(self, parent_version: str, settings: UpdateSettings) -> list[FieldViolation]:
        """An update continues its parent's LoRA, so it cannot have another shape. NotFound for an unknown parent."""
        folder = self._policies.adapter_folder(parent_version)
        if folder is None:
            return []
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        shape = (("rank", settings.rank, config["r"]), ("alpha", settings.alpha, config["lora_alpha"]))
        return [
            FieldViolation(f"settings.{name}", str(given), f"{kept}, as in the parent policy, whose LoRA is continued")
            for name, given, kept in shape
            if given != kept
        ]

    def _job_or_stored(
        self, name: str, request: UpdateRequest, parent: Policy, lessons: Lessons
    ) -> tuple[_Job | None, UpdateResult | None]:
        """The running job, or a new one; or the stored result. Of callers at the same time only one starts it."""
        with self._lock:
            job = self._jobs.get(name)
            if job is not None:
                return job, None
            stored = self._stored(name)
            if stored is not None:
                return None, stored
            if self._stopping:
                raise Unavailable("the teacher is stopping")
            job = self._jobs[name] = _Job()
            thread = threading.Thread(target=self._run, args=(name, job, request, parent, lessons), name="update")
            self._threads = [*(old for old in self._threads if old.is_alive()), thread]
            thread.start()
            return job, None

    def stop(self) -> None:
        """End the running update; asked for again, it starts anew."""
        with self._lock:
            self._stopping = True
            child = self._child
        if child is not None:
            child.terminate()
        for thread in self._threads:
            thread.join(timeout=20)

    def _run(self, name: str, job: _Job, request: UpdateRequest, parent: Policy, lessons: Lessons) -> None:
        result: UpdateResult | None = None
        error: Exception | None = None
        try:
            with self._turn:
                result = self._train(name, job, request, parent, lessons)
                stored = {**dataclasses.asdict(result), "policy": policy_to_json(result.policy)}
                (self._folder / name).mkdir(exist_ok=True)
                write_atomically(self._folder / name / _RESULT, json.dumps(stored, indent=1, sort_keys=True))
            metrics.UPDATES.labels("updated" if result.updated else "unchanged").inc()
            metrics.count_lessons(lessons.kept, lessons.passed_over, lessons.stale, lessons.unscored)
            metrics.LAST_UPDATE.set_to_current_time()
            if result.updated:
                metrics.UPDATE_SECONDS.observe(result.train_seconds)
                metrics.show_policy(result.policy.version, self._settings.model)
                metrics.show_training(result.metrics)
        except Exception as caught:
            result, error = None, caught
            metrics.UPDATES.labels("failed").inc()
            _log.exception("update %s failed", name)
        finally:
            with self._lock:
                self._jobs.pop(name, None)
            job.end(result, error)

    def _train(self, name: str, job: _Job, request: UpdateRequest, parent: Policy, lessons: Lessons) -> UpdateResult:
        if not lessons.kept:
            return UpdateResult(parent, name, False, 0, 0.0, lessons.message, lessons.unscored, lessons.stale)
        work = self._folder / name / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        started = time.monotonic()
        try:
            self._write_request(work, request, lessons)
            trained = self._run_child(work, job, request.algorithm)
            seconds = time.monotonic() - started
            lineage = Policy(
                version="",
                parent_version=parent.version,
                run_id=request.run_id,
                round=request.round,
                algorithm=request.algorithm,
                data_hash=data_hash(request),
                update_id=name,
                created_at=datetime.now(UTC),
            )
            policy = self._policies.add(work / "adapter", lineage)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return UpdateResult(
            policy,
            name,
            True,
            lessons.kept,
            seconds,
            "",
            lessons.unscored,
            lessons.stale,
            **vars(trained),
            learnt=lessons.weights,
        )

    def _write_request(self, work: Path, request: UpdateRequest, lessons: Lessons) -> None:
        settings = self._settings
        parent = self._policies.adapter_folder(request.parent_version)
        content = {
            "model": settings.model,
            "cache_dir": str(settings.cache_dir.absolute()) if settings.cache_dir else "",
            "quantisation": settings.quantisation,
            "dequantise": settings.dequantise,
            "device": one_device(settings.device, os.environ)[0],
            "compute_dtype": settings.compute_dtype,
            "threads": settings.update_threads or settings.threads,
            "gradient_checkpointing": settings.gradient_checkpointing,
            "rows_a_pass": settings.update_rows,
            "algorithm": request.algorithm,
            "settings": dataclasses.asdict(request.settings),
            "seed": request.seed % 2**32,
            "parent_folder": str(parent.absolute()) if parent else "",
        }
        (work / "request.json").write_text(json.dumps(content), encoding="utf-8")
        write_groups(lessons.groups, work / "groups.safetensors")

    def _run_child(self, work: Path, job: _Job, algorithm: str) -> _Trained:
        """Run the update's process to its end."""
        command = [sys.executable, "-m", "teacher.update_child", str(work.absolute())]
        environment = {**os.environ, **_QUIET, **one_device(self._settings.device, os.environ)[1]}
        threads = self._settings.update_threads or self._settings.threads
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        log = work / "log.txt"
        with log.open("w") as errors:
            with self._lock:
                if self._stopping:
                    raise Unavailable("the teacher is stopping")
                # Standard input is held open, never written: when this process dies, the child sees its end.
                child = self._child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
                )
            trained = _Trained()
            try:
                assert child.stdout is not None
                for line in child.stdout:
                    told = json.loads(line)
                    if "steps_done" in told:
                        job.tell(UpdateProgress(**told))
                    elif "violations" in told:
                        raise InvalidInput([FieldViolation(**each) for each in told["violations"]])
                    else:
                        trained = _Trained(**told)
                code = child.wait()
            finally:
                child.kill()
                child.communicate()
                with self._lock:
                    self._child = None
        if self._stopping:
            raise Unavailable("the teacher is stopping; the update starts anew when it is asked for again")
        if code < 0:
            # Killed from outside, most often for memory: nothing says that it would happen again.
            raise Unavailable(f"the update's process was ended by signal {-code}", retry_after_s=10)
        if code:
            told = log.read_text(errors="replace").strip()[-2000:]
            _log.error("the update's process ended with code %d: %s", code, told)
            # Who asked may not see the log, and the algorithm may be a package's.
            raise TutelageError(f"algorithm {algorithm!r} failed in training: {told.rpartition(chr(10))[2][:500]}")
        return trained

    def _stored(self, name: str) -> UpdateResult | None:
        path = self._folder / name / _RESULT
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            result = UpdateResult(**{**fields, "policy": policy_from_json(fields["policy"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"the stored result of update {name} is damaged") from error
        version = result.policy.version
        try:
            return dataclasses.replace(result, policy=self._policies.get(version))
        except NotFound:
            _log.warning("policy %s of update %s is gone: it is made anew", version, name)
            return None
        except TutelageError as error:
            raise DataLoss(f"the policy that update {name} made is damaged: {error}") from error

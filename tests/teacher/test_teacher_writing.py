"""Writing: sampled by seed, recorded as sampled, stamped with the policy that wrote; bad requests are refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from teacher.config import TeacherSettings
from teacher.engine import Writer
from teacher.policies import PolicyStore
from teacher.sampling import sample_completions
from tutelage.domain.errors import InvalidInput, NotFound
from tutelage.domain.policy import Candidate, Format, Parser, Sampling
from tutelage.domain.task import DocumentTask, Task
from tutelage.models.loading import Dequantise, load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import policy_pb2

TASK = Task("t", DocumentTask("Velm", "Velm is a town."))
FORMAT = Format("own", "{title}: {text}", Parser.LINES)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    folder = tmp_path_factory.mktemp("teacher")
    model = str(write_tiny_model(folder / "model"))
    loaded = load_model(model, quantisation="none", device="cpu", threads=1)
    settings = TeacherSettings(model=model, threads=1, data_dir=folder)
    return Writer(loaded, PolicyStore(folder / "policies", loaded.revision), settings)


def write(writer: Writer, seed: int = 3, sampling: Sampling | None = None, count: int = 3) -> list[Candidate]:
    version = writer._policies.initial.version
    found = writer.write(TASK, FORMAT, count, sampling or Sampling(max_new_tokens=12), version, seed)
    return sorted(found, key=lambda candidate: candidate.index)


def test_same_seed_same_candidates(writer: Writer) -> None:
    first, again, other = write(writer), write(writer), write(writer, seed=4)
    assert first == again
    assert [c.text for c in first] != [c.text for c in other]
    assert len({c.seed for c in first}) == 3
    assert len({c.text for c in first}) > 1


def test_log_probs_are_the_models_own_at_the_temperature_sampled_with(writer: Writer) -> None:
    for candidate in write(writer, sampling=Sampling(0.7, 0.9, 12)):
        rollout = policy_pb2.Rollout.FromString(candidate.rollout)
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.inference_mode():
            log_probs = torch.log_softmax(writer.loaded.model(input_ids=ids).logits.float() / 0.7, dim=-1)[0]
        start = len(rollout.prompt_ids)
        expected = [float(log_probs[start + i - 1, token]) for i, token in enumerate(rollout.completion_ids)]
        assert list(rollout.log_probs) == pytest.approx(expected, abs=0.05)
        assert rollout.tokenizer_hash == writer.tokenizer_hash
        assert len(rollout.completion_ids) == candidate.completion_tokens


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_same_is_written_however_weights_are_unpacked(compute_dtype: str, tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    written = []
    for way in get_args(Dequantise):
        loaded = load_model(model, compute_dtype=compute_dtype, device="cpu", threads=1, dequantise=way)
        settings = TeacherSettings(model=model, threads=1, data_dir=tmp_path)
        written.append(write(Writer(loaded, PolicyStore(tmp_path / "policies", loaded.revision), settings)))
    assert written[0] == written[1] == written[2]


def test_a_row_that_ends_leaves_the_others_as_they_were(writer: Writer) -> None:
    prompt = writer.prompt_of(TASK, FORMAT)
    model, sampling = writer.loaded.model, Sampling(max_new_tokens=10)
    free = {row.row: row for row in sample_completions(model, prompt, [1, 2, 3], sampling, frozenset())}
    stop = free[0].ids[2]
    stopped = {row.row: row for row in sample_completions(model, prompt, [1, 2, 3], sampling, frozenset({stop}))}
    for row, whole in free.items():
        cut = stopped[row]
        assert whole.ids[: len(cut.ids)] == cut.ids
        assert cut.ended == (cut.ids[-1] == stop)
    assert len(stopped[0].ids) <= 3


def test_cancelling_stops(writer: Writer) -> None:
    prompt = writer.prompt_of(TASK, FORMAT)
    sampled = sample_completions(
        writer.loaded.model, prompt, [1], Sampling(max_new_tokens=400), frozenset(), cancelled=lambda: True
    )
    assert list(sampled) == []


def test_refusals_name_the_field(writer: Writer) -> None:
    version = writer._policies.initial.version
    sampling = Sampling(max_new_tokens=8)
    with pytest.raises(NotFound, match="policy"):
        list(writer.write(TASK, FORMAT, 1, sampling, "f" * 64, 1))
    with pytest.raises(InvalidInput, match=r"candidates.*1 to 64"):
        list(writer.write(TASK, FORMAT, 65, sampling, version, 1))
    with pytest.raises(InvalidInput, match=r"format.prompt"):
        list(writer.write(TASK, Format("own", " ", Parser.LINES), 1, sampling, version, 1))
    with pytest.raises(InvalidInput, match=r"sampling.top_p"):
        list(writer.write(TASK, FORMAT, 1, Sampling(1.0, 0.0, 8), version, 1))
    long = Task("t", DocumentTask("Velm", "Velm is a town. " * 60))
    with pytest.raises(InvalidInput, match=r"task.document.text.*512 tokens"):
        list(writer.write(long, FORMAT, 1, sampling, version, 1))


def test_health_is_what_the_model_says_of_itself(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writer.healthy()
    before = write(writer)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("an update has all of it")

    with monkeypatch.context() as patched:
        patched.setattr(writer.loaded.model, "forward", broken)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            writer.healthy()
        patched.setattr(writer.loaded.model, "forward", full)
        assert writer.healthy()
        # Who writes now would be waited for, and tells by itself.
        with writer._lock:
            assert writer.healthy()
    assert writer.healthy()
    assert write(writer) == before

"""The ways that grade one self-edit at a time, timed; on a CPU each in a process whose memory is its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.inner_loop_ways import by_peft, by_trainer, published_step_seconds, workload
from tutelage.models.loading import Dequantise, LoadedModel, load_model

WAYS = {"peft": by_peft, "peft-unpacked": by_peft, "trainer": by_trainer}


@dataclass(frozen=True)
class Asked:
    """A way, the model and the workload."""

    way: str
    """One of WAYS, or `published`."""
    model: str
    threads: int
    seed: int
    edits: int
    epochs: int
    rank: int
    targets: tuple[str, ...]
    max_new_tokens: int
    length: int
    """Of the published procedure's sequences, in tokens."""
    steps: int
    """Of the published procedure."""


class Took(NamedTuple):
    """One edit, or the published procedure's steps."""

    tokens: int
    """Trained on; 0 of the published procedure."""
    seconds: float
    """Of the published procedure a step's."""
    training: float
    peak_mib: float


def alone(asked: Asked, loaded: LoadedModel | None = None, beside: LoadedModel | None = None) -> list[Took]:
    """What each edit took, in this process on a model that is there, or in one of its own that loads the model."""
    if loaded is not None:
        return _do(asked, loaded, beside)
    # Spawned: a fork would begin with all memory of this process.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_load_and_do, asked).result()


def _load_and_do(asked: Asked) -> list[Took]:
    torch.set_num_threads(asked.threads)
    unpacked = asked.way == "peft-unpacked"
    held: Dequantise = "once" if unpacked else "each-pass"
    return _do(asked, load_model(asked.model, device="cpu", threads=asked.threads, dequantise=held), None)


def _do(asked: Asked, loaded: LoadedModel, beside: LoadedModel | None) -> list[Took]:
    load = workload(asked.edits, asked.epochs, asked.seed, asked.rank, asked.targets)
    begin_peak()
    if asked.way == "published":
        seconds = published_step_seconds(loaded, load, asked.length, asked.steps)
        return [Took(0, seconds, seconds, peak_mib(beside))]
    took = []
    for i in range(asked.edits):
        begin_peak()
        begun = time.monotonic()
        training = WAYS[asked.way](loaded, load, i, asked.max_new_tokens)
        took.append(Took(load.tokens(loaded, i), time.monotonic() - begun, training, peak_mib(beside)))
    return took


def begin_peak() -> None:
    """The peak of the memory is counted anew from now on, where the system can do that."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # What was given free is not of the run that begins.
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(beside: LoadedModel | None) -> float:
    """Most memory since `begin_peak`: resident; of a GPU what is allocated, without the model that only stands by."""
    if beside is not None and beside.device != "cpu":
        return (torch.cuda.max_memory_allocated() - weight_bytes(beside)) / 2**20
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def weight_bytes(loaded: LoadedModel) -> int:
    """Of all weights as they are held, but for the scales of quantised ones."""
    return sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())

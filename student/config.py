"""What an operator tells a student; every field is one key of the student's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tutelage.domain.evaluation import Bounds
from tutelage.rpc.config import ServerSettings
from tutelage.settings import Inconsistent, Settings


class BoundsSettings(Settings):
    """Ranges the student accepts; both ends included."""

    min_learning_rate: float = Field(default=1e-6, gt=0)
    """Least learning rate."""
    max_learning_rate: float = Field(default=1e-2, gt=0)
    """Greatest learning rate."""
    min_epochs: int = Field(default=1, ge=1)
    """Fewest epochs."""
    max_epochs: int = Field(default=30, ge=1)
    """Most epochs."""
    min_rank: int = Field(default=1, ge=1)
    """Least LoRA rank."""
    max_rank: int = Field(default=128, ge=1)
    """Greatest LoRA rank."""
    max_document_tokens: int = Field(default=1024, ge=1)
    """Most tokens of one training document."""
    max_documents: int = Field(default=128, ge=1)
    """Most documents of one self-edit; the longest built-in format keeps 96 notes beside the task's own."""
    max_steps: int = Field(default=2000, ge=1)
    """Most optimiser steps of one inner loop."""
    clamp: bool = False
    """Clamp directives out of bounds; otherwise they reject the edit."""

    @model_validator(mode="after")
    def _ordered(self) -> BoundsSettings:
        for name in ("learning_rate", "epochs", "rank"):
            if getattr(self, f"min_{name}") > getattr(self, f"max_{name}"):
                most = getattr(self, f"max_{name}")
                raise Inconsistent.of(f"min_{name}", getattr(self, f"min_{name}"), f"max_{name} ({most}) at most")
        return self

    def to_domain(self) -> Bounds:
        """The same as the domain's dataclass."""
        return Bounds(**self.model_dump())


class StudentSettings(Settings):
    """A student: its model, where it keeps things, and its limits."""

    model: str = Field(min_length=1)
    """The base model: a name that `tutelage models list` shows, a folder, or a hub id (owner/name)."""
    quantisation: Literal["nf4", "int8", "none"] = "nf4"
    """How the frozen base is held in memory."""
    dequantise: Literal["auto", "each-pass", "once"] = "auto"
    """When NF4 weights are brought to the compute type: in each pass, or once at the start, which takes two or four
    bytes a weight and saves time where few are trained side by side. `auto`: once on a CPU where that takes at most a
    tenth of the machine's memory. Either way reports are the same."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:<n>`."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`, `float32` or `bfloat16`: the type of the base's activations."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; nothing leaves it to the machine. Fixed threads are needed for bit-identical reports."""
    cache_dir: Path | None = None
    """Where models are found; nothing means the project's cache."""
    slots: int | None = Field(default=None, ge=1, le=256)
    """Evaluations trained side by side on the one base; nothing chooses by the free memory, at most 16."""
    max_step_tokens: int = Field(default=2048, ge=1)
    """Most tokens of one forward and backward pass, over all slots; bounds the memory of a step."""
    max_training_gib: float | None = Field(default=None, gt=0)
    """Most GiB that training takes beside the base; nothing takes 60 % of what is free at the start. It decides the
    slots, where they are not given, and an evaluation that needs more alone ends as a retryable failure."""
    max_queue: int = Field(default=64, ge=0)
    """Evaluations that may wait; the call for one more is refused with RESOURCE_EXHAUSTED."""
    data_dir: Path
    """Folder of adapter versions, reports and held weights."""
    bounds: BoundsSettings = BoundsSettings()
    """What self-edits and runs may ask for."""
    deterministic: bool = False
    """The same key gives the same report bit for bit on the same machine, whatever arrives beside it. Evaluations are
    then worked on one at a time, which is slower; without it reports differ by rounding."""
    lease_s: float = Field(default=60, gt=0)
    """Seconds an evaluation goes on after its last watcher left."""
    hold_s: float = Field(default=86400, ge=0)
    """Seconds the weights of an evaluation are held for Commit."""
    max_held_gib: float = Field(default=10, gt=0)
    """Most GiB of held weights; above it the oldest go first."""
    max_adapter_rank: int = Field(default=256, ge=1)
    """A committed version of higher rank is recompressed to this rank by SVD."""
    loaded_adapters: int = Field(default=4, ge=1)
    """Adapter versions kept in memory for answering."""
    max_new_tokens: int = Field(default=32, ge=1, le=4096)
    """Most tokens of an answer."""
    quiz_batch_size: int = Field(default=32, ge=1)
    """Questions answered in one batch."""
    server: ServerSettings = ServerSettings()
    """How the service listens."""

    @model_validator(mode="after")
    def _alone(self) -> StudentSettings:
        if self.deterministic and self.slots not in (None, 1):
            allowed = "1, or nothing: a deterministic student works on one evaluation at a time"
            raise Inconsistent.of("slots", self.slots, allowed)
        return self

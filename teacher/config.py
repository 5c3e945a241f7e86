"""What a teacher is told when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tutelage.chat_endpoint import ChatEndpointSettings
from tutelage.rpc.config import ServerSettings
from tutelage.settings import Inconsistent, Settings


class TeacherSettings(Settings):
    """Settings of the teacher's service."""

    backend: Literal["model", "passage", "replay", "endpoint"] = "model"
    """Who writes: this teacher's `model`, which learns; or, to compare with, what does not: the `passage` alone, a
    `replay` of self-edits from a file, or the model behind an OpenAI-compatible `endpoint`."""
    replay_file: Path | None = None
    """For `replay`: JSON lines of `{"task_id": "...", "text": "..."}`."""
    endpoint: ChatEndpointSettings | None = None
    """For `endpoint`: where the model answers."""
    model: str = Field(default="smollm2-135m-instruct", min_length=1)
    """The writer's base model: a name that `tutelage models list` shows, a folder, or a hub id (owner/name)."""
    quantisation: Literal["nf4", "int8", "none"] = "nf4"
    """How the frozen base is kept, for writing and for updates alike."""
    dequantise: Literal["auto", "each-pass", "once"] = "auto"
    """When NF4 weights are brought to the compute type: for each token that is written and each pass of an update, or
    once at the start of either, which takes two or four bytes a weight and is faster.
    `auto`: once on a CPU where that takes at most a tenth of the machine's memory. In bfloat16 what is written and
    learnt under a LoRA differs by rounding."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the base: `auto`, `float32` or `bfloat16`."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the model; nothing leaves torch's own choice. A fixed number makes writing repeatable."""
    update_threads: int | None = Field(default=None, ge=1)
    """CPU threads of an update's process; nothing means as `threads`."""
    update_rows: int | None = Field(default=None, ge=1)
    """Most candidates in one pass of an update; nothing means 1 on a CPU, where pads cost, and 8 on a GPU."""
    cache_dir: Path | None = None
    """Where models are cached; nothing means TUTELAGE_CACHE or ~/.cache/tutelage."""
    data_dir: Path = Path("data/teacher")
    """Where policy versions and the results of updates are kept."""
    serving_policies: int = Field(default=2, ge=1, le=64)
    """How many policy versions stay loaded for writing; the one not used for longest is dropped first."""
    max_candidates: int = Field(default=64, ge=1, le=1024)
    """Most candidates of one call."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Most tokens of one candidate."""
    answer_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens, answers and pads included, of one batch when made questions are answered; bounds its memory."""
    max_rank: int = Field(default=256, ge=1)
    """Largest LoRA rank of an update."""
    gradient_checkpointing: bool = False
    """Recompute activations in updates: less memory for more time."""
    server: ServerSettings = ServerSettings()
    """How the service listens."""

    @model_validator(mode="after")
    def _consistent(self) -> TeacherSettings:
        if self.backend == "replay" and self.replay_file is None:
            raise Inconsistent.of("replay_file", "nothing", "a file, as backend is replay")
        if self.backend == "endpoint" and self.endpoint is None:
            raise Inconsistent.of("endpoint", "nothing", "where the model answers, as backend is endpoint")
        return self

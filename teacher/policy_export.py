"""A policy version for use elsewhere: its LoRA in PEFT's format, or the whole model with the LoRA merged in.

Merging loads the base anew and unquantised, in a process of its own: the serving model stays as it is, and the memory
goes back. That process ends when nobody waits for it, and with the one that began it. A LoRA trained on a quantised
base makes up for its rounding too, so the merged model is close to what the teacher samples from, not equal to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from peft import PeftModel

from teacher.config import TeacherSettings
from teacher.policies import ADAPTER_FILES, PolicyStore
from tutelage.domain.errors import PreconditionFailed, Unavailable
from tutelage.domain.policy import ExportedFile, PolicyDetails, PolicyForm

CHUNK = 1 << 20
"""Bytes of one part; a message holds no more than four times as many."""
CARD = "policy.json"
"""The version's lineage, beside its weights."""
POLL_S = 0.1
"""Seconds between two questions whether merging has ended or is still waited for."""
LEFT_ALONE = 75
"""Exit code of a merging whose parent is gone."""


def describe_policy(policies: PolicyStore, version: str, promoted: str) -> PolicyDetails:
    """What is known of a version. NotFound or DataLoss as `PolicyStore.get`."""
    policy = policies.get(version)
    folder = policies.adapter_folder(version)
    ancestors = tuple(policies.ages(version))[1:]
    if folder is None:
        return PolicyDetails(policy, 0, 0.0, (), 0, ancestors, version == promoted)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    size = sum((folder / name).stat().st_size for name in ADAPTER_FILES)
    modules = tuple(sorted({name.rpartition(".")[2] for name in config["target_modules"]}))
    return PolicyDetails(
        policy, config["r"], float(config["lora_alpha"]), modules, size, ancestors, version == promoted
    )


def export_policy(
    settings: TeacherSettings,
    policies: PolicyStore,
    version: str,
    form: PolicyForm,
    card: Mapping[str, object],
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[ExportedFile | bytes, None, None]:
    """Each file's head, then its bytes; `card` is written beside the weights.

    PreconditionFailed for the LoRA of policy 0, which has none; NotFound and DataLoss as `PolicyStore.get`.
    """
    adapter = policies.adapter_folder(version)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=settings.data_dir) as staging:
        folder = Path(staging)
        if form is PolicyForm.PEFT:
            if adapter is None:
                raise PreconditionFailed("policy 0 is the untouched model: it has no LoRA, but can be exported merged")
            paths = [adapter / name for name in ADAPTER_FILES]
        else:
            _merge_in_process(settings, adapter, folder, cancelled)
            paths = sorted(path for path in folder.iterdir() if path.is_file())
        text = json.dumps(card, indent=1, sort_keys=True).encode()
        yield ExportedFile(CARD, len(text))
        yield text
        for path in paths:
            yield ExportedFile(path.name, path.stat().st_size)
            with path.open("rb") as stream:
                while not cancelled() and (part := stream.read(CHUNK)):
                    yield part


def _merge_in_process(
    settings: TeacherSettings, adapter: Path | None, output: Path, cancelled: Callable[[], bool]
) -> None:
    request = {
        "model": settings.model,
        "cache_dir": str(settings.cache_dir.absolute()) if settings.cache_dir else "",
        "adapter": str(adapter.absolute()) if adapter else "",
        "output": str(output.absolute()),
    }
    command = [sys.executable, "-m", "teacher.policy_export"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        # Standard input is held open behind the request: when this process dies, the child sees its end.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment, bufsize=1
        ) as child,
    ):
        try:
            assert child.stdin is not None
            child.stdin.write(json.dumps(request) + "\n")
            while not cancelled():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
                    break
            else:
                return
        finally:
            child.kill()
        log.seek(0)
        told = log.read()
    if child.returncode < 0:
        # Most often for memory: it holds the whole model unquantised.
        raise Unavailable(f"merging was ended by signal {-child.returncode}", retry_after_s=30)
    if child.returncode:
        raise RuntimeError(f"merging ended with code {child.returncode}: {told[-2000:]}")


def merge(model: str, cache_dir: str, adapter: str, output: str) -> None:
    """Write the base in the precision it is stored in, with the LoRA merged in, and its tokenizer, to a folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tutelage.models.registry import resolve

    path = resolve(model, cache_dir or None).path
    base = AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True, use_safetensors=True)
    if adapter:
        base = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
    base.save_pretrained(output)
    AutoTokenizer.from_pretrained(path, local_files_only=True).save_pretrained(output)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(LEFT_ALONE)


if __name__ == "__main__":
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    merge(**asked)

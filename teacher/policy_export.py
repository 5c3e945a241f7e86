"""A policy version for use elsewhere: its LoRA in PEFT's format, or the whole model with the LoRA merged in.

Merging loads the base anew and unquantised, in a process of its own: the serving model stays as it is, and the memory
goes back. A LoRA trained on a quantised base makes up for its rounding too, so the merged model is close to what the
teacher samples from, not equal to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
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
            _merge_in_process(settings, adapter, folder)
            paths = sorted(path for path in folder.iterdir() if path.is_file())
        text = json.dumps(card, indent=1, sort_keys=True).encode()
        yield ExportedFile(CARD, len(text))
        yield text
        for path in paths:
            yield ExportedFile(path.name, path.stat().st_size)
            with path.open("rb") as stream:
                while not cancelled() and (part := stream.read(CHUNK)):
                    yield part


def _merge_in_process(settings: TeacherSettings, adapter: Path | None, output: Path) -> None:
    request = {
        "model": settings.model,
        "cache_dir": str(settings.cache_dir.absolute()) if settings.cache_dir else "",
        "adapter": str(adapter.absolute()) if adapter else "",
        "output": str(output.absolute()),
    }
    command = [sys.executable, "-m", "teacher.policy_export"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode < 0:
        # Most often for memory: it holds the whole model unquantised.
        raise Unavailable(f"merging was ended by signal {-done.returncode}", retry_after_s=30)
    if done.returncode:
        raise RuntimeError(f"merging ended with code {done.returncode}: {done.stderr[-2000:]}")


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


if __name__ == "__main__":
    merge(**json.loads(sys.stdin.read()))

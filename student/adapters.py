"""Adapter versions on disk: PEFT's own format beside a manifest, named by the content they hold.

    <root>/<version>/adapter_config.json, adapter_model.safetensors, manifest.json

A version is written into a temporary folder, synced, the manifest last, and renamed into place; one without a manifest
does not exist. One that is deleted is renamed out of its place first. Every file is checked against the manifest's
SHA-256 when it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from student.lora import LoraWeights
from tutelage.domain.canonical import content_hash
from tutelage.domain.description import Adapter
from tutelage.domain.errors import DataLoss, InvalidInput, NotFound, PreconditionFailed

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"
PREFIX = "base_model.model."
"""What PEFT puts before the name of each module in a saved adapter."""


def tensors_of(weights: LoraWeights) -> bytes:
    """The weights as a safetensors file under PEFT's names."""
    tensors = {}
    for name, (a, b) in weights.modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.float().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.float().contiguous()
    return save_tensors(tensors, metadata={"format": "pt"})


def weights_of(data: bytes) -> LoraWeights:
    """The inverse of `tensors_of`; raises DataLoss when the bytes are no whole safetensors file."""
    try:
        tensors = load_tensors(data)
        end = ".lora_A.weight"
        names = sorted(key[len(PREFIX) : -len(end)] for key in tensors if key.endswith(end))
        return LoraWeights(
            {n: (tensors[f"{PREFIX}{n}.lora_A.weight"], tensors[f"{PREFIX}{n}.lora_B.weight"]) for n in names}
        )
    except Exception as error:
        raise DataLoss(f"stored adapter weights are damaged: {type(error).__name__}") from error


def write_synced(path: Path, data: bytes) -> None:
    """Writes and syncs a file, so that a crash leaves all of it or a folder nobody looks at."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _peft_config(weights: LoraWeights, base_model: str) -> dict[str, Any]:
    # alpha = rank: the scaling is folded into B.
    config = LoraConfig(
        r=weights.rank,
        lora_alpha=weights.rank,
        target_modules=sorted(weights.modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_model,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


class AdapterStore:
    """The versions one student keeps. Safe for several threads: a version is immutable and appears at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        # Left by a process that died while writing or deleting.
        for pattern in (".writing-*", ".deleting-*"):
            for leftover in root.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)

    def save(
        self, weights: LoraWeights, *, parent: str, evaluation_id: str, base_model: str, base_revision: str
    ) -> Adapter:
        """Stores a version and returns it; one that is there already is returned as it is."""
        config = _peft_config(weights, base_model)
        files = {WEIGHTS: tensors_of(weights), CONFIG: json.dumps(config, indent=2, sort_keys=True).encode()}
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        lineage: dict[str, Any] = {
            "parent": parent,
            "evaluation_id": evaluation_id,
            "base_model": base_model,
            "base_revision": base_revision,
            "rank": weights.rank,
            "bytes": sum(len(data) for data in files.values()),
            "sha256": hashes,
        }
        version = content_hash(lineage)
        final = self.root / version
        if (final / MANIFEST).exists():
            return self.get(version)
        manifest = {"version": version, **lineage, "created_at": datetime.now(UTC).isoformat()}
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.root))
        try:
            for name, data in files.items():
                write_synced(folder / name, data)
            write_synced(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return self.get(version)

    def _manifest(self, version: str) -> dict[str, Any]:
        # A version becomes part of a path: nothing but a hash may.
        if not re.fullmatch(r"[0-9a-f]{64}", version):
            raise InvalidInput.of("adapter_version", version, "64 lower-case hex digits")
        try:
            manifest: dict[str, Any] = json.loads((self.root / version / MANIFEST).read_bytes())
            whole = WEIGHTS in manifest["sha256"] and isinstance(manifest["base_revision"], str)
        except FileNotFoundError:
            raise NotFound("adapter", version) from None
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"the manifest of adapter {version} is damaged") from error
        if not whole:
            raise DataLoss(f"the manifest of adapter {version} is damaged")
        return manifest

    def get(self, version: str) -> Adapter:
        """Raises NotFound, or DataLoss for a damaged manifest."""
        manifest = self._manifest(version)
        try:
            return Adapter(
                version=version,
                parent_version=manifest["parent"],
                evaluation_id=manifest["evaluation_id"],
                rank=manifest["rank"],
                bytes=manifest["bytes"],
                created_at=datetime.fromisoformat(manifest["created_at"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss(f"the manifest of adapter {version} is damaged") from error

    def load(self, version: str, base_revision: str) -> LoraWeights:
        """The weights, checked whole. Raises NotFound, DataLoss, or PreconditionFailed for another base model's."""
        manifest = self._manifest(version)
        contents = {}
        for name, expected in manifest["sha256"].items():
            try:
                contents[name] = (self.root / version / name).read_bytes()
            except FileNotFoundError:
                raise DataLoss(f"adapter {version} lacks {name}") from None
            if hashlib.sha256(contents[name]).hexdigest() != expected:
                raise DataLoss(f"{name} of adapter {version} is truncated or damaged")
        if manifest["base_revision"] != base_revision:
            raise PreconditionFailed(
                f"adapter {version} belongs to base revision {manifest['base_revision']}, not {base_revision}"
            )
        return weights_of(contents[WEIGHTS])

    def list(self) -> tuple[Adapter, ...]:
        """All whole versions, oldest first; damaged ones are left out."""
        return tuple(sorted(self._whole(), key=lambda adapter: (adapter.created_at, adapter.version)))

    def _whole(self) -> Iterator[Adapter]:
        for folder in self.root.iterdir():
            if not folder.name.startswith("."):
                try:
                    yield self.get(folder.name)
                except (NotFound, DataLoss, InvalidInput):
                    continue

    def delete(self, version: str) -> None:
        """Removes a version. Raises NotFound."""
        self._manifest_exists(version)
        # Out of its place at once: what cannot be removed now is removed at the next start.
        folder = Path(tempfile.mkdtemp(prefix=".deleting-", dir=self.root))
        try:
            (self.root / version).rename(folder / version)
        except FileNotFoundError:
            # Another call was faster.
            raise NotFound("adapter", version) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _manifest_exists(self, version: str) -> None:
        try:
            self._manifest(version)
        except DataLoss:
            return

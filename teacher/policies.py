"""Policy versions on disk: one folder a version, named by the hash of what it holds.

A version is a LoRA adapter in PEFT's own format beside a manifest with its lineage and the hash of each file. It is
written aside and renamed into place, so a folder under its final name is whole; whatever is read is checked against the
manifest. Nobody writes to a folder that is in place: a process hashes a file once, and again only when it was touched.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path

from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import DataLoss, NotFound, PreconditionFailed
from tutelage.domain.policy import Policy

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MANIFEST = "manifest.json"
_VERSION = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


class PolicyStore:
    """The policy versions of one base model, in one folder."""

    def __init__(self, folder: Path, base_revision: str) -> None:
        self._folder = folder
        self._base_revision = base_revision
        self._hashes: dict[Path, tuple[tuple[int, ...], str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._initial = self._first()

    @property
    def initial(self) -> Policy:
        """Policy 0: the untouched model; its version is the hash of the base's revision and no adapter."""
        return self._initial

    def get(self, version: str) -> Policy:
        """The policy of a version. NotFound when there is none, DataLoss when it is damaged."""
        if version == self._initial.version:
            return self._initial
        if not _VERSION.fullmatch(version) or not (self._folder / version).is_dir():
            raise NotFound("policy", version, "ListPolicies tells which are")
        return self._read(version)

    def adapter_folder(self, version: str) -> Path | None:
        """The checked PEFT folder of a version; None for policy 0."""
        policy = self.get(version)
        return None if policy.version == self._initial.version else self._folder / policy.version

    def list(self) -> list[Policy]:
        """All whole versions, oldest first, policy 0 at the head; damaged ones are logged and left out."""
        found = []
        for path in self._folder.iterdir():
            if not _VERSION.fullmatch(path.name) or path.name == self._initial.version:
                continue
            try:
                found.append(self._read(path.name))
            except (DataLoss, PreconditionFailed) as error:
                _log.error("a stored policy is left out: %s", error)
        return [self._initial, *sorted(found, key=lambda policy: (policy.created_at, policy.version))]

    def ages(self, version: str) -> dict[str, int]:
        """How many updates each ancestor of a version is behind it; the version itself is 0 behind."""
        found: dict[str, int] = {}
        current: str = version
        while current and current not in found:
            found[current] = len(found)
            try:
                current = self.get(current).parent_version
            except (DataLoss, NotFound, PreconditionFailed) as error:
                # What it wrote is still in the lineage; what came before it is not known.
                _log.warning("the lineage of policy %s ends early: %s", version, error)
                break
        return found

    def add(self, source: Path, lineage: Policy) -> Policy:
        """Store the adapter in `source` (moved away) under its content hash; `lineage.version` is ignored."""
        _order_modules(source / ADAPTER_FILES[0])
        for name in ADAPTER_FILES:
            _sync(source / name)
        files = {name: _file_hash(source / name) for name in ADAPTER_FILES}
        policy = dataclasses.replace(lineage, version=_version(files, lineage))
        target = self._folder / policy.version
        if target.is_dir():
            return self._read(policy.version)
        staging = self._folder / f".new-{uuid.uuid4().hex}"
        staging.mkdir()
        for name in ADAPTER_FILES:
            shutil.move(source / name, staging / name)
        manifest = {"base_revision": self._base_revision, "files": files, "policy": policy_to_json(policy)}
        write_atomically(staging / _MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        os.replace(staging, target)
        _sync(self._folder)
        return policy

    def _read(self, version: str) -> Policy:
        folder = self._folder / version
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            policy, files = policy_from_json(manifest["policy"]), dict(manifest["files"])
            base = manifest["base_revision"]
            whole = set(files) == set(ADAPTER_FILES) and all(self._hash(folder / n) == files[n] for n in files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"policy {version} is damaged: {type(error).__name__}") from error
        if not whole or policy.version != version or _version(files, policy) != version:
            raise DataLoss(f"policy {version} is damaged: its content does not match its hash")
        if base != self._base_revision:
            raise PreconditionFailed(f"policy {version} belongs to another base model revision, {base}")
        return policy

    def _hash(self, path: Path) -> str:
        """The hash of a file in place. Adapters are large, and calls that only name them are many."""
        found = path.stat()
        # What is written to a file moves its change time, which nobody sets back; another file has another inode.
        state = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._hashes.get(path)
        if known is None or known[0] != state:
            known = self._hashes[path] = (state, _file_hash(path))
        return known[1]

    def _first(self) -> Policy:
        version = content_hash({"base_revision": self._base_revision, "adapter": None})
        path = self._folder / f"initial-{version}.json"
        if not path.exists():
            policy = Policy(version, "", "", 0, "", "", "", _now())
            write_atomically(path, json.dumps(policy_to_json(policy)))
        try:
            return policy_from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"the record of policy 0, {path.name}, is damaged") from error


def policy_to_json(policy: Policy) -> dict[str, object]:
    """A policy as plain JSON."""
    return {**dataclasses.asdict(policy), "created_at": policy.created_at.isoformat()}


def policy_from_json(value: dict[str, object]) -> Policy:
    """The policy of `policy_to_json`; KeyError, TypeError or ValueError when it is none."""
    fields = dict(value)
    created_at = datetime.fromisoformat(str(fields.pop("created_at")))
    return Policy(created_at=created_at, **fields)  # type: ignore[arg-type]


def write_atomically(path: Path, text: str) -> None:
    """Write a file aside, flush it to the disk and rename it into place."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)


def _order_modules(config: Path) -> None:
    """Sorts the lists in PEFT's file: it writes sets, whose order changes from process to process."""
    content = json.loads(config.read_text(encoding="utf-8"))
    ordered = {
        name: sorted(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value
        for name, value in content.items()
    }
    config.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")


def _version(files: dict[str, str], policy: Policy) -> str:
    """The time of storing is not part of it: the same update, run twice, is the same version."""
    lineage = {**dataclasses.asdict(policy), "version": "", "created_at": ""}
    return content_hash({"files": files, "lineage": lineage})


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> datetime:
    return datetime.now(UTC)

"""Stored policies are hashed once, again when a file was touched; what is promoted is told only where it is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from teacher import policies
from teacher.policies import PolicyStore
from teacher.promotion import Promotions
from tutelage.domain.errors import Conflict, DataLoss, PreconditionFailed
from tutelage.domain.policy import Policy

WEIGHTS = b"weights" * 100


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "policies", "base")


@pytest.fixture
def promotions(tmp_path: Path, store: PolicyStore) -> Promotions:
    return Promotions(tmp_path / "promoted.json", store)


def added(store: PolicyStore, tmp_path: Path, number: int) -> str:
    source = tmp_path / f"adapter-{number}"
    source.mkdir()
    (source / "adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": ["q_proj"]}))
    (source / "adapter_model.safetensors").write_bytes(WEIGHTS)
    initial = store.initial
    return store.add(source, Policy("", initial.version, "run", number, "grpo", "d", "u", initial.created_at)).version


def weights_of(tmp_path: Path, version: str) -> Path:
    return tmp_path / "policies" / version / "adapter_model.safetensors"


def test_what_was_not_touched_is_not_hashed_again(
    store: PolicyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    inner = policies._file_hash

    def counted(path: Path) -> str:
        hashed.append(path)
        return inner(path)

    versions = [added(store, tmp_path, number) for number in (1, 2, 3)]
    monkeypatch.setattr(policies, "_file_hash", counted)
    store.list()
    assert len(hashed) == len(set(hashed)) == 2 * len(versions)
    for version in versions:
        store.list()
        store.adapter_folder(version)
        store.ages(version)
    assert len(hashed) == 2 * len(versions)
    # Another process trusts nothing that it has not read.
    PolicyStore(tmp_path / "policies", "base").list()
    assert len(hashed) == 4 * len(versions)


def test_damage_is_found_whatever_the_time_of_the_file(store: PolicyStore, tmp_path: Path) -> None:
    version = added(store, tmp_path, 1)
    weights = weights_of(tmp_path, version)
    assert store.adapter_folder(version) == weights.parent
    before = weights.stat()
    weights.write_bytes(b"W" + WEIGHTS[1:])
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataLoss):
        store.adapter_folder(version)
    assert [policy.version for policy in store.list()] == [store.initial.version]
    aside = weights.with_name("aside")
    aside.write_bytes(WEIGHTS)
    os.utime(aside, ns=(before.st_atime_ns, before.st_mtime_ns))
    aside.replace(weights)
    assert store.get(version).version == version
    weights.unlink()
    with pytest.raises(DataLoss):
        store.get(version)


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"version": "x"}', "[" * 100_000])
def test_a_record_that_is_damaged_names_nothing_until_another_is_promoted(
    promotions: Promotions, store: PolicyStore, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    version = added(store, tmp_path, 1)
    promotions.promote(store.initial.version, version)
    (tmp_path / "promoted.json").write_text(content)
    assert promotions.usable() == ""
    assert "promoted.json" in caplog.text
    assert "damaged" in caplog.text
    with pytest.raises(Conflict):
        promotions.promote(store.initial.version, version)
    assert promotions.promote(promotions.current().version, version).previous_versions == ()
    assert promotions.usable() == Promotions(tmp_path / "promoted.json", store).current().version == version


def test_a_version_that_is_gone_or_damaged_is_not_told(
    promotions: Promotions, store: PolicyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (added(store, tmp_path, number) for number in (1, 2))
    promotions.promote(store.initial.version, first)
    promotions.promote(first, second)
    weights_of(tmp_path, second).write_bytes(b"")
    assert promotions.usable() == ""
    assert second in caplog.text
    shutil.rmtree(weights_of(tmp_path, second).parent)
    assert promotions.usable() == ""
    # Going back is still possible.
    now = promotions.current()
    assert now.version == second
    assert promotions.promote(now.version, now.previous_versions[0]).version == first
    assert promotions.usable() == first


def test_what_is_promoted_is_of_one_base_model(
    promotions: Promotions, store: PolicyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = added(store, tmp_path, 1)
    promotions.promote(store.initial.version, version)
    other = PolicyStore(tmp_path / "policies", "another base")
    changed = Promotions(tmp_path / "promoted.json", other)
    assert changed.usable() == changed.current().version == other.initial.version
    assert changed.current().previous_versions == ()
    assert "another base" in caplog.text
    with pytest.raises(PreconditionFailed):
        changed.promote(other.initial.version, version)
    assert promotions.usable() == version
    # Policy 0 of another base is no policy of this one either.
    promotions.promote(version, store.initial.version)
    assert changed.usable() == other.initial.version

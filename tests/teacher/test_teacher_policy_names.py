"""A policy's version names what it holds: not the order in which a process happened to list it."""

from __future__ import annotations

import json
from pathlib import Path

from teacher.policies import PolicyStore
from tutelage.domain.policy import Policy


def test_the_order_of_the_modules_does_not_change_a_version(tmp_path: Path) -> None:
    versions = []
    for number, modules in enumerate((["q_proj", "v_proj", "o_proj"], ["v_proj", "o_proj", "q_proj"])):
        store = PolicyStore(tmp_path / f"policies-{number}", "base")
        source = tmp_path / f"adapter-{number}"
        source.mkdir()
        (source / "adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": modules}))
        (source / "adapter_model.safetensors").write_bytes(b"weights")
        initial = store.initial
        lineage = Policy("", initial.version, "run", 1, "rest_em", "data", "update", initial.created_at)
        versions.append(store.add(source, lineage).version)
        kept = store.adapter_folder(versions[-1])
        assert kept is not None
        assert json.loads((kept / "adapter_config.json").read_text())["target_modules"] == sorted(modules)
    assert versions[0] == versions[1]

"""What deploy/ ships is true: its settings parse, and its alerts and panels use metrics that exist."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
_MODELS = {"teacher": "TeacherSettings", "student": "StudentSettings", "orchestrator": "OrchestratorSettings"}


def _generate_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "tools" / "generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def known_metrics() -> set[str]:
    tables = _generate_docs()
    rooms = ("student.metrics", "teacher.metrics", "orchestrator.metrics", "tutelage.rpc.metrics")
    return {name for room in rooms for name in re.findall(r"^\| `(\w+)`", tables.metrics_part(room), re.MULTILINE)}


def expressions(path: Path) -> list[str]:
    if path.suffix == ".json":
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        return [target["expr"] for panel in panels for target in panel.get("targets", [])]
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("file", ["grafana/tutelage.json", "prometheus/rules.yml"])
def test_expressions_name_metrics_that_exist(file: str) -> None:
    known = known_metrics()
    found = expressions(DEPLOY / file)
    assert found
    for expression in found:
        for name in re.findall(r"\b(?:tutelage|grpc_server)_\w+", expression):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in known or name in known, expression


@pytest.mark.parametrize("room", sorted(_MODELS))
def test_settings_parse(room: str) -> None:
    from tutelage.settings import load_settings

    model = getattr(importlib.import_module(f"{room}.config"), _MODELS[room])
    settings = load_settings(DEPLOY / "config" / f"{room}.yaml", model)
    assert settings.server.tls is not None
    assert settings.server.token_file is not None


def test_example_runs_parse() -> None:
    from tutelage.cli.run_file import prepare_run

    runs = sorted((ROOT / "examples" / "runs").glob("*.yaml"))
    assert runs
    for run in runs:
        assert prepare_run(run).tasks

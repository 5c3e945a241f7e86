"""What deploy/ ships is true: its settings parse, and its alerts and panels use metrics that exist."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from prometheus_client import REGISTRY

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
    own = {name for room in rooms for name in re.findall(r"^\| `(\w+)`", tables.metrics_part(room), re.MULTILINE)}
    # Those of every process, which prometheus_client adds.
    every = {sample.name for metric in REGISTRY.collect() for sample in metric.samples}
    return own | {name for name in every if name.startswith("process_")}


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
        for name in re.findall(r"\b(?:tutelage|grpc_server|process)_\w+", expression):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in known or name in known, expression


def test_panels_ask_for_the_form_of_data_that_they_show() -> None:
    """As series a histogram's buckets are cumulative, each with all below it, and a table has a row a point in time."""
    panels = json.loads((DEPLOY / "grafana" / "tutelage.json").read_text(encoding="utf-8"))["panels"]
    forms = {"timeseries": "time_series", "heatmap": "heatmap", "table": "table"}
    for panel in panels:
        for target in panel.get("targets", []):
            assert target.get("format", "time_series") == forms[panel["type"]], panel["title"]
            assert target.get("instant", False) == (panel["type"] == "table"), panel["title"]


def test_alerts_tell_systems_that_are_well_from_those_that_are_not() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Prometheus)")
    tested = subprocess.run(
        [promtool, "test", "rules", str(Path(__file__).with_name("alerts.yaml"))], capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("room", sorted(_MODELS))
def test_labels_of_targets_hide_no_label_of_a_metric(room: str) -> None:
    tables = _generate_docs()
    parts = tables.metrics_part(f"{room}.metrics") + tables.metrics_part("tutelage.rpc.metrics")
    of_metrics = {
        name
        for cell in re.findall(r"^\|.*?\|.*?\|(.*?)\|", parts, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))[
        "scrape_configs"
    ]
    targets = [each["labels"] for each in scraped["static_configs"] if each["labels"]["role"] == room]
    assert targets
    assert of_metrics
    for labels in targets:
        assert not of_metrics & set(labels)


@pytest.mark.parametrize("room", sorted(_MODELS))
def test_settings_parse(room: str) -> None:
    from tutelage.settings import load_settings

    model = getattr(importlib.import_module(f"{room}.config"), _MODELS[room])
    settings = load_settings(DEPLOY / "config" / f"{room}.yaml", model)
    assert settings.server.tls is not None
    assert settings.server.token_file is not None


@pytest.mark.parametrize("room", sorted(_MODELS))
def test_units_keep_documents_and_quizzes_from_other_users_of_the_host(room: str) -> None:
    text = (DEPLOY / "systemd" / f"tutelage-{room}.service").read_text(encoding="utf-8")
    (mode,) = re.findall(r"^StateDirectoryMode=(\d+)$", text, re.MULTILINE)
    assert int(mode, 8) & 0o007 == 0


def test_example_runs_parse() -> None:
    from tutelage.cli.run_file import prepare_run

    runs = sorted((ROOT / "examples" / "runs").glob("*.yaml"))
    assert runs
    for run in runs:
        assert prepare_run(run).tasks


def test_secrets_that_could_not_be_made_are_made_the_next_time(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "make_secrets.sh", tmp_path)

    def make(path: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([script], env={"PATH": path}, capture_output=True, text=True)

    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    broken = tmp_path / "bin"
    broken.mkdir()
    openssl = broken / "openssl"
    openssl.write_text("#!/bin/sh\necho no random numbers >&2\nexit 1\n")
    openssl.chmod(0o755)
    failed = make(f"{broken}:{os.environ['PATH']}")
    assert failed.returncode != 0
    assert "no random numbers" in failed.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bin", "make_secrets.sh"]
    assert make(os.environ["PATH"]).returncode == 0
    made = tmp_path / "secrets"
    names = {"ca.key", "ca.pem", "ca.srl", "server.key", "server.pem", "token"}
    assert {each.name for each in made.iterdir()} == names
    verified = ["openssl", "verify", "-CAfile", str(made / "ca.pem"), str(made / "server.pem")]
    assert subprocess.run(verified, capture_output=True).returncode == 0
    assert (made / "server.key").stat().st_mode & 0o777 == 0o600

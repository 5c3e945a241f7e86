"""What a teacher's /metrics shows before anything has happened, so that the first event is an increase."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

from teacher import parsing
from teacher.metrics import REPAIR_KINDS


def test_every_counter_is_there_before_its_first_event(tmp_path: Path) -> None:
    ready, config = tmp_path / "ready.json", tmp_path / "teacher.yaml"
    server = {"metrics_port": 0, "ready_file": str(ready)}
    config.write_text(yaml.safe_dump({"backend": "passage", "data_dir": str(tmp_path / "data"), "server": server}))
    command = "from tutelage.cli.main import main; main()"
    with subprocess.Popen([sys.executable, "-c", command, "teacher", "serve", "--config", str(config)]) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            address = json.loads(ready.read_text())["metrics_address"]
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                page = answer.read().decode()
        finally:
            process.terminate()
    for name, label, values in (
        ("updates", "outcome", ("updated", "unchanged", "failed")),
        ("update_candidates", "outcome", ("kept", "passed_over", "stale", "unscored")),
        ("candidates", "outcome", ("parsed", "rejected")),
        ("tokens", "direction", ("prompt", "completion")),
        ("rejected", "reason", ("unparsable", "out_of_bounds", "too_large", "diverged", "empty")),
        ("repairs", "kind", ("duplicate", "unreadable", "thought", "cut_off", "loop", "echo", "over_limit")),
    ):
        for value in values:
            assert f'tutelage_teacher_{name}_total{{{label}="{value}"}} 0.0' in page


def test_every_kind_of_repair_that_a_parser_counts_is_told_of_before_it_happens() -> None:
    folder = Path(parsing.__file__).parent
    counted = {
        kind
        for name in ("parsing.py", "note_lines.py")
        for kind in re.findall(r'repairs\["(\w+)"\]', (folder / name).read_text(encoding="utf-8"))
    }
    assert counted | {"duplicate"} == set(REPAIR_KINDS)

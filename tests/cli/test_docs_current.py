"""The tables in docs/ say what the code says, links lead somewhere, and what is shown of a run's YAML starts a run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.run_config import RunConfig
from tutelage.settings import parse_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy/README.md"]


def test_generated_tables_are_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_what_extending_shows_of_a_run_can_stand_in_one() -> None:
    shown = re.findall(r"(?ms)^```yaml\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"))
    runs = [parse_settings(f"students: [ada]\n{each}", RunConfig) for each in shown]
    assert runs[-1].graders == ("begins_with", "loglik")
    assert len(runs) >= 4

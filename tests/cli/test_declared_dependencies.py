"""Every imported package is named in pyproject.toml where its room is installed, and pinned in constraints.txt."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = {"tutelage", "teacher", "student", "orchestrator"}
EXTRAS = {"teacher": ("models", "teacher"), "student": ("models", "student"), "tutelage/models": ("models",)}
"""What is installed beside the base where a folder's code runs."""


def normal(requirement: str) -> str:
    """The distribution a requirement names, as pip compares names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return {normal(item) for item in [*project["dependencies"], *(item for name in extras for item in optional[name])]}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@cache
def distributions() -> dict[str, set[str]]:
    return {module: {normal(name) for name in names} for module, names in packages_distributions().items()}


def foreign(path: Path) -> set[str]:
    tops = {module.partition(".")[0] for module in imported(path)}
    return {top for top in tops if top not in OWN and top not in sys.stdlib_module_names}


@pytest.mark.parametrize("folder", ["tutelage", "tutelage/models", "teacher", "student", "orchestrator"])
def test_imports_are_declared(folder: str) -> None:
    allowed = declared(*EXTRAS.get(folder, ()))
    missing = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        if folder == "tutelage" and path.is_relative_to(ROOT / "tutelage" / "models"):
            continue
        for top in foreign(path):
            if not distributions().get(top, set()) & allowed:
                missing[str(path.relative_to(ROOT))] = top
    assert missing == {}


def test_what_is_declared_is_pinned() -> None:
    pinned = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    everything = declared(*project["optional-dependencies"]) - {"tutelage"}
    assert everything - pinned == set()

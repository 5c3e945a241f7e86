"""Fills the generated parts of docs/: settings from the pydantic models, metrics from the registries.

A part stands between `<!-- generated: KIND TARGET -->` and `<!-- end -->`. `--check` changes nothing and fails when a
part is not what would be written.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

ROOT = Path(__file__).resolve().parent.parent
_PART = re.compile(r"(<!-- generated: (\w+) ([\w.]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def settings_part(target: str) -> str:
    """The table of a settings model, named by `module.Class`."""
    from tutelage.settings import settings_table

    module, _, name = target.rpartition(".")
    return settings_table(getattr(importlib.import_module(module), name))


def _collectors(module_name: str) -> list[Any]:
    """The metrics of a module: those its `...Metrics` class registers, or those that stand in the module itself."""
    module = importlib.import_module(module_name)
    found: list[Any] = [value for value in vars(module).values() if isinstance(value, MetricWrapperBase)]
    for name, owner in vars(module).items():
        if name.endswith("Metrics") and inspect.isclass(owner) and owner.__module__ == module_name:
            registry = CollectorRegistry()
            make: Callable[..., object] = owner
            make(registry=registry)
            found += list(registry._collector_to_names)
    if not found:
        raise SystemExit(f"{module_name} has no metrics")
    return found


def metrics_part(module_name: str) -> str:
    """The table of a module's metrics."""
    rows = []
    for collector in _collectors(module_name):
        # Label names are not part of the public interface; children exist only where a value was set.
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        for family in collector.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(["| Metric | Type | Labels | Meaning |", "|---|---|---|---|", *sorted(rows)]) + "\n"


_KINDS = {"settings": settings_part, "metrics": metrics_part}


def filled(text: str) -> str:
    """The text with every generated part written anew."""
    return _PART.sub(lambda part: part[1] + _KINDS[part[2]](part[3]) + part[5], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is not current")
    check = parser.parse_args().check
    # Rooms are imported as they stand in this checkout.
    sys.path.insert(0, str(ROOT))
    stale = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not check:
            path.write_text(fresh, encoding="utf-8")
    if stale and check:
        print(f"not current: {', '.join(stale)} (run 'make docs')", file=sys.stderr)
        return 1
    for name in stale:
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Products of ever new shapes do not fill the memory; each in a process of its own, as torch reads the bounds once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.models.shape_caches import CAPACITIES

SAYS = "import student, os, sys; assert 'torch' not in sys.modules; print(*(os.environ[name] for name in sys.argv[1:]))"
GROWS = """
import resource
import student
import torch
torch.set_num_threads(1)
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
weight = torch.randn(64, 64, dtype=torch.bfloat16)
before = resident()
for tokens in range(1, 600):
    torch.randn(tokens, 64, dtype=torch.bfloat16) @ weight
print(resident() - before)
"""


def said_by(program: str, *arguments: str, **environment: str) -> str:
    others = {name: value for name, value in os.environ.items() if name not in CAPACITIES}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**others, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_student_bounds_them_before_torch_is_imported() -> None:
    assert said_by(SAYS, *CAPACITIES) == " ".join(CAPACITIES.values())


def test_what_the_operator_set_stays() -> None:
    assert said_by(SAYS, *CAPACITIES, LRU_CACHE_CAPACITY="7") == "128 7"


@pytest.mark.parametrize("page", ["operate-student.md", "operate-teacher.md"])
def test_the_operator_reads_what_holds(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    assert all(f"`{name}` ({capacity}" in text for name, capacity in CAPACITIES.items())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_grows_by_less_than_half_of_what_it_would() -> None:
    large = dict.fromkeys(CAPACITIES, "1024")
    unbounded, bounded = float(said_by(GROWS, **large)), float(said_by(GROWS))
    if unbounded < 100:
        pytest.skip(f"this processor keeps no large programs: {unbounded:.0f} MiB for 600 shapes")
    assert bounded < unbounded / 2

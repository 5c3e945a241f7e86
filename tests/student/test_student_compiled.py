"""Sixteen values as one in compiled code: what is read, written, rounded and raised to a power is as in torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import binding
from numba.core.caching import IndexDataCacheFile

from student import compiled
from student.compiled import LANES

COPY = """
import sys, numpy as np
from student.bank_products import add_adapters
from student.row_attention import RowAttention
import torch
q = torch.ones(1, 2, 3, 4)
RowAttention.apply(q, q, q, [3], 1.0)
"""


@compiled.compiled
def narrow_and_widen(source: int, count: int, halves: int, to: int) -> None:
    compiled.narrow(compiled.read(source, count), halves, count)
    compiled.write(compiled.widen(halves, count), to, LANES)


@compiled.compiled
def exponentials(source: int, to: int) -> None:
    compiled.write(compiled.exponential(compiled.read(source, LANES)), to, LANES)


@compiled.compiled
def copy(source: int, count: int, to: int) -> None:
    compiled.write(compiled.read(source, count), to, count)


@compiled.compiled
def total_and_largest(source: int, count: int) -> tuple[float, float]:
    return compiled.total(compiled.read(source, count)), compiled.largest(compiled.read_least(source, count))


bits = st.lists(st.integers(0, 2**32 - 1), min_size=LANES, max_size=LANES)


def check_rounding(bits: list[int], count: int) -> None:
    values = torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32).copy())
    halves, found = torch.full((LANES,), 3.0, dtype=torch.bfloat16), torch.empty(LANES)
    narrow_and_widen(values.data_ptr(), count, halves.data_ptr(), found.data_ptr())
    expected = torch.cat([values[:count].bfloat16(), torch.full((LANES - count,), 3.0, dtype=torch.bfloat16)])
    torch.testing.assert_close(halves, expected, rtol=0, atol=0, equal_nan=True)
    widened = torch.cat([values[:count].bfloat16().float(), torch.zeros(LANES - count)])
    torch.testing.assert_close(found, widened, rtol=0, atol=0, equal_nan=True)


@given(bits=bits, count=st.integers(0, LANES))
def test_values_are_rounded_to_bfloat16_as_torch_does_and_none_beyond_the_count(bits: list[int], count: int) -> None:
    check_rounding(bits, count)


@pytest.mark.parametrize(
    "bits", [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 1]
)
def test_ties_overflows_and_what_is_no_number_are_rounded_as_torch_does(bits: int) -> None:
    check_rounding([bits] * LANES, LANES)


@given(values=st.lists(st.floats(-87, 88, width=32), min_size=LANES, max_size=LANES))
def test_exponentials_are_those_of_double_precision_to_a_few_units_in_the_last_place(values: list[float]) -> None:
    given_, found = torch.tensor(values), torch.empty(LANES)
    exponentials(given_.data_ptr(), found.data_ptr())
    torch.testing.assert_close(found.double(), given_.double().exp(), rtol=3e-7, atol=0.0)


def test_exponentials_beyond_what_float32_holds_end_at_zero_and_at_the_largest_power_and_nan_stays_nan() -> None:
    given_ = torch.tensor([-torch.inf, -1e30, -88.0, 89.0, torch.inf, torch.nan] + [0.0] * (LANES - 6))
    found = torch.empty(LANES)
    exponentials(given_.data_ptr(), found.data_ptr())
    assert found[:3].tolist() == [0.0, 0.0, 0.0]
    assert found[3] == found[4] > 1e38
    assert found[5].isnan()
    assert found[6:].tolist() == [1.0] * (LANES - 6)


@given(values=st.lists(st.floats(-100, 100, width=32), min_size=LANES, max_size=LANES), count=st.integers(-3, 20))
def test_no_value_beyond_the_count_is_read_or_written(values: list[float], count: int) -> None:
    source, to = torch.tensor(values), torch.full((LANES,), 7.0)
    copy(source.data_ptr(), count, to.data_ptr())
    count = min(max(count, 0), LANES)
    assert torch.equal(to, torch.cat([source[:count], torch.full((LANES - count,), 7.0)]))
    total, largest = total_and_largest(source.data_ptr(), count)
    assert total == pytest.approx(float(source[:count].double().sum()), abs=1e-3)
    assert largest == (float(source[:count].max()) if count else -np.inf)


def run(cache: Path) -> None:
    """A process that compiles, or finds what another has."""
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-c", COPY], check=True, cwd=root, env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    )


def test_what_was_compiled_is_found_again_and_made_anew_where_it_was_half_written(tmp_path: Path) -> None:
    run(tmp_path)
    kept = sorted(tmp_path.rglob("*.nb?"))
    assert {file.suffix for file in kept} == {".nbc", ".nbi"}
    times = [file.stat().st_mtime_ns for file in kept]
    run(tmp_path)
    assert [file.stat().st_mtime_ns for file in kept] == times
    for damage in (100, 0):
        sizes = [file.stat().st_size for file in kept]
        for file in kept:
            file.write_bytes(file.read_bytes()[:damage])
        run(tmp_path)
        assert [file.stat().st_size for file in kept] == sizes


def test_other_sources_and_other_processors_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def three_more(value: int) -> int:
        return value + 3

    def names() -> set[str]:
        assert compiled.kept(three_more)(1) == 4
        return {file.name for file in tmp_path.rglob("*.nb?")}

    own = names()
    assert names() == own
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: "another")
    both = names()
    assert len(both) == 2 * len(own)
    monkeypatch.setattr(compiled, "_SOURCES", ("compiled.py",))
    assert len(names()) == 3 * len(own)


def test_where_nothing_can_be_kept_each_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*arguments: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiled._Cache, "__init__", nowhere)

    def one_more(value: int) -> int:
        return value + 1

    assert compiled.kept(one_more)(1) == 2


def test_a_full_disk_does_not_keep_a_function_from_being_used_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "save", full)

    def two_more(value: int) -> int:
        return value + 2

    assert compiled.kept(two_more)(1) == 3
    assert "No space left on device" in caplog.text

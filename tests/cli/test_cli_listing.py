"""Tables for people: what names a row can be copied, whatever the width of the terminal."""

from __future__ import annotations

import pytest

from tutelage.cli.listing import print_table

_RUN = "first-try-20261121-165410"


@pytest.mark.parametrize("width", [70, 80, 200])
def test_names_stay_in_one_piece(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    row = (_RUN, "failed", "1/2 ended", "0/16", "", "2026-11-21 16:54")
    print_table(("run", "state", "round", "evaluations", "mean reward", "created (UTC)"), [row], "no runs yet")
    out = capsys.readouterr().out
    assert _RUN in out
    assert max(len(line) for line in out.splitlines()) <= width


def test_an_empty_list_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("run",), [], "no runs yet")
    assert capsys.readouterr().out == "no runs yet\n"


_ADAPTERS = ("student", "base model", "current", "before (newest first)", "changed (UTC)", "address")
_VERSIONS = ("ada", "smollm2-135m-instruct", "3c830c4a5f92", "8a7ff8f46b93, base", "2026-11-30 09:22", "127.0.0.1:7072")


def test_versions_and_addresses_are_not_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "84")
    print_table(_ADAPTERS, [_VERSIONS], "none")
    out = capsys.readouterr().out
    # The longest word gives way, no other.
    assert all(word in out for cell in _VERSIONS for word in cell.split() if word != "smollm2-135m-instruct")
    assert max(len(line) for line in out.splitlines()) <= 84


def test_a_pipe_gets_a_line_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    why = "gain +0.0000 on contains is not above 0.05, and what it forgot of the retention quiz is more than it may"
    print_table(_ADAPTERS, [(*_VERSIONS[:-1], why), _VERSIONS], "none")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("ada")]
    assert [all(cell in row for cell in _VERSIONS[:-1]) for row in rows] == [True, True]
    assert rows[0].rstrip().endswith(why)

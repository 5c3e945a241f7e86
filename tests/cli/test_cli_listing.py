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

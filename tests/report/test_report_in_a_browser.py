"""The pages in a real Chromium: nothing on the console, in light and in dark, and nothing wider than the page."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from orchestrator.report.comparison import compare
from orchestrator.report.comparison_html import render_comparison_html
from orchestrator.report.data import RunReport
from orchestrator.report.html import render_html

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")


@pytest.fixture(scope="module")
def chromium() -> str:
    given = os.environ.get("TUTELAGE_TEST_CHROMIUM")
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium here ({', '.join(NAMES)}), and TUTELAGE_TEST_CHROMIUM is not set")
    return found


def profile(page: Path) -> str:
    """A fresh one: the browser before may not have let go of its own yet, and the next would wait for it."""
    return tempfile.mkdtemp(prefix="profile", dir=page.parent)


def opened(chromium: str, page: Path, *options: str) -> tuple[str, list[str]]:
    """The document as the browser built it, and the lines of its console."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={profile(page)}", "--window-size=1200,1600", "--virtual-time-budget=2000",
        "--enable-logging=stderr", "--log-level=0", *options, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def screenshot(chromium: str, page: Path, *options: str) -> bytes:
    """The page's picture as PNG."""
    picture = page.with_suffix(".png")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={profile(page)}", "--hide-scrollbars", "--window-size=600,400", *options,
        f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=180, check=True)
    return picture.read_bytes()


def _pages(report: RunReport) -> dict[str, str]:
    summary = dataclasses.replace(report.header.summary, run_id="harbour-02")
    other = dataclasses.replace(report, header=dataclasses.replace(report.header, summary=summary))
    return {"report": render_html(report), "comparison": render_comparison_html(compare(report, other))}


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_opens_without_a_word_on_the_console(
    chromium: str, tmp_path: Path, run_report: RunReport, name: str
) -> None:
    page = tmp_path / f"{name}.html"
    page.write_text(_pages(run_report)[name], encoding="utf-8")
    for options in ((), DARK):
        built, console = opened(chromium, page, *options)
        assert console == []
        assert len(re.findall("<section id=", built)) == (9 if name == "report" else 3)
        assert built.rstrip().endswith("</html>")
    assert screenshot(chromium, page) != screenshot(chromium, page, *DARK), "light and dark look the same"


def test_a_word_on_the_console_would_be_seen(chromium: str, tmp_path: Path, run_report: RunReport) -> None:
    page = tmp_path / "broken.html"
    # What the page's own policy forbids: a script, and a picture from elsewhere.
    broken = _pages(run_report)["report"].replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>')
    page.write_text(broken, encoding="utf-8")
    _, console = opened(chromium, page)
    assert any("Content Security Policy" in line for line in console)

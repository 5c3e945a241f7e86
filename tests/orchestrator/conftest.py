"""A world for each test of this room, on SQLite, and a judge; and a PostgreSQL server where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.judge_endpoint import Endpoint
from tests.orchestrator.world import World


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server: TUTELAGE_TEST_POSTGRES, or one of our own when its programs are there."""
    given = os.environ.get("TUTELAGE_TEST_POSTGRES")
    if given:
        yield given
        return
    found = shutil.which("initdb") or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if found is None:
        pytest.skip("PostgreSQL is not installed (no initdb) and TUTELAGE_TEST_POSTGRES is not set")
    programs = Path(found).resolve().parent
    as_root = os.geteuid() == 0
    if as_root and not shutil.which("runuser"):
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    prefix = ["runuser", "-u", "postgres", "--"] if as_root else []
    with tempfile.TemporaryDirectory(prefix="tutelage-pg-", dir="/tmp") as folder:
        if as_root:
            shutil.chown(folder, "postgres")
        data = f"{folder}/data"
        made = subprocess.run(
            [*prefix, str(programs / "initdb"), "-D", data, "-U", "tutelage", "-A", "trust", "--no-sync"],
            cwd="/",
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"initdb failed: {made.stderr.strip()[-200:]}")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        control = [*prefix, str(programs / "pg_ctl"), "-D", data, "-w", "-l", f"{folder}/log"]
        subprocess.run([*control, "-o", options, "start"], cwd="/", check=True, stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql://tutelage@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], cwd="/", check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(f"sqlite:///{tmp_path / 'orchestrator.sqlite'}")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()

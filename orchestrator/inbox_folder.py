"""The folder of an inbox: files dropped there are read once they rest, and moved when their documents are stored.

A file is moved only after the database has its documents, and documents that are there already stay as they are:
whatever instant it is stopped at, reading the file again loses and doubles nothing.
"""

from __future__ import annotations

import asyncio
import logging
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from orchestrator.adapt_quiz import submission_violations
from orchestrator.inbox_config import MOST_DOCUMENTS
from tutelage.documents import read_tasks
from tutelage.domain.errors import AlreadyExists, InvalidInput
from tutelage.domain.run import TaskWithQuiz

logger = logging.getLogger(__name__)

TAKEN, REFUSED = "taken", "refused"
LARGEST = 256 * 1024 * 1024
"""Bytes of the largest file that is read."""
STUCK_S = 60.0
"""Seconds until a file or folder that the system refused is tried again."""

Submit = Callable[[Sequence[TaskWithQuiz], str], Awaitable[int]]
"""Stores documents from a source and says how many are new."""


def resting_files(folder: Path, settle_s: float, now: float) -> list[Path]:
    """Files that may be read now, oldest first: plain ones, left alone for `settle_s` before `now` (since 1970).

    The folder is made when it is missing. Links are passed over: they could lead out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for path in folder.iterdir():
        if path.suffix not in (".jsonl", ".json") or path.name.startswith(".") or path.is_symlink():
            continue
        try:
            status = path.stat()
        except OSError:
            # Moved away by another orchestrator, or not to be seen.
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mtime <= now - settle_s:
            found.append((status.st_mtime, path.name, path))
    return [path for _, _, path in sorted(found)]


def read_dropped(path: Path, unasked: bool) -> list[TaskWithQuiz]:
    """The documents of a file; InvalidInput for what no run could use. With `unasked` they may lack their questions."""
    size = path.stat().st_size
    if size > LARGEST:
        raise InvalidInput.of(path.name, f"{size} bytes", f"at most {LARGEST} bytes")
    tasks = read_tasks(path, unasked=unasked)
    if len(tasks) > MOST_DOCUMENTS:
        raise InvalidInput.of(path.name, f"{len(tasks)} documents", f"at most {MOST_DOCUMENTS} at once")
    wrong = submission_violations(tasks, unasked)
    if wrong:
        raise InvalidInput(wrong)
    return tasks


def put_away(path: Path, where: str, why: str = "") -> None:
    """Moves a file into a folder beside it, under a free name, with the reason in a text file where there is one."""
    target = path.parent / where
    target.mkdir(exist_ok=True)
    free = target / path.name
    number = 1
    while free.exists():
        number += 1
        free = target / f"{path.stem}-{number}{path.suffix}"
    if why:
        free.with_name(f"{free.name}.why.txt").write_text(f"{why}\n", encoding="utf-8")
    path.rename(free)


async def take_in(folder: Path, settle_s: float, unasked: bool, submit: Submit, stuck: dict[Path, float]) -> int:
    """Reads what rests in the folder, and says how many documents are new. A file that cannot be used is put aside.

    What can be neither read nor moved keeps nothing else back: it is `stuck`, and tried again at the time kept there.
    """
    new = 0
    now = time.time()
    for path in [path for path, again_at in stuck.items() if again_at <= now]:
        del stuck[path]
    for path in await _rested(folder, settle_s, now, stuck):
        try:
            new += await _taken(path, unasked, submit)
        except OSError as error:
            stuck[path] = now + STUCK_S
            logger.error("inbox file %s can be neither taken nor put aside: %s", path, error)
    return new


async def _rested(folder: Path, settle_s: float, now: float, stuck: dict[Path, float]) -> list[Path]:
    if folder in stuck:
        return []
    try:
        found = await asyncio.to_thread(resting_files, folder, settle_s, now)
    except OSError as error:
        stuck[folder] = now + STUCK_S
        logger.error("inbox folder %s cannot be read: %s", folder, error)
        return []
    return [path for path in found if path not in stuck]


async def _taken(path: Path, unasked: bool, submit: Submit) -> int:
    try:
        added = await submit(await asyncio.to_thread(read_dropped, path, unasked), path.name)
        logger.info("inbox file %s: %d new documents", path, added)
        await asyncio.to_thread(put_away, path, TAKEN)
    except (InvalidInput, AlreadyExists) as error:
        logger.warning("inbox file %s is refused: %s", path, error)
        await asyncio.to_thread(put_away, path, REFUSED, str(error))
    except FileNotFoundError:
        # Another orchestrator with the same folder was faster.
        return 0
    else:
        return added
    return 0

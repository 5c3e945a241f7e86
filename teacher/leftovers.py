"""What a teacher that was killed leaves in its data folder; nothing of it is in force, and the next one clears it.

Only for a process that has the folder to itself, before it works there.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

LEFTOVERS = (
    ".export-*",
    ".promoted.json.*",
    "policies/.new-*",
    "policies/.initial-*",
    "updates/*/work",
    "updates/*/.result.json.*",
)
"""What exports, updates and files that are written aside are called until they are done."""
_log = logging.getLogger(__name__)


def clear_leftovers(data_dir: Path) -> None:
    """Remove what was begun and not ended; what cannot be removed is logged and left."""
    for path in [path for pattern in LEFTOVERS for path in data_dir.glob(pattern)]:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            _log.warning("%s, left by a teacher that was killed, cannot be removed: %s", path, error)
        else:
            _log.info("removed %s, left by a teacher that was killed", path)
    for folder in data_dir.glob("updates/*"):
        # Of an update that made nothing; one with a result keeps its folder.
        with contextlib.suppress(OSError):
            folder.rmdir()

"""Which policy version is recommended: one small file, changed by compare-and-set, that remembers what it was before.

Nothing uses it silently: whoever writes names a version. A run may say `promoted`, which is looked up at its start.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

from teacher.policies import PolicyStore, write_atomically
from tutelage.domain.errors import Conflict, DataLoss
from tutelage.domain.policy import Promotion

REMEMBERED = 50
"""How many earlier versions are kept in mind."""


class Promotions:
    """The promoted version of one teacher."""

    def __init__(self, path: Path, policies: PolicyStore) -> None:
        self._path = path
        self._policies = policies
        self._lock = threading.Lock()

    def current(self) -> Promotion:
        """Policy 0 until somebody promotes another. DataLoss when the file is damaged."""
        if not self._path.exists():
            initial = self._policies.initial
            return Promotion(initial.version, (), initial.created_at)
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            previous = tuple(str(version) for version in stored["previous_versions"])
            return Promotion(str(stored["version"]), previous, datetime.fromisoformat(stored["changed_at"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"{self._path.name}, the record of what is promoted, is damaged") from error

    def promote(self, expected: str, version: str) -> Promotion:
        """Make `version` the promoted one where `expected` is.

        Conflict when another is, NotFound for a version that is not kept, DataLoss for one that is damaged. Promoting
        the version before is going back: it leaves the list of earlier ones as if it had never been left.
        """
        self._policies.get(version)
        with self._lock:
            now = self.current()
            if now.version != expected:
                raise Conflict(f"policy {now.version} is promoted, not {expected!r}")
            if now.version == version:
                return now
            back = now.previous_versions[:1] == (version,)
            previous = now.previous_versions[1:] if back else (now.version, *now.previous_versions)[:REMEMBERED]
            made = Promotion(version, previous, datetime.now(UTC))
            content = {
                "version": made.version,
                "previous_versions": made.previous_versions,
                "changed_at": made.changed_at.isoformat(),
            }
            write_atomically(self._path, json.dumps(content, indent=1))
            return made

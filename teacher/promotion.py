"""Which policy version is recommended: one small file, changed by compare-and-set, that remembers what it was before.

Nothing uses it silently: whoever writes names a version. A run may say `promoted`, which is looked up at its start. It
belongs to the base model on which it was promoted. Where it cannot be had, those that ask for it are told, not given
another; promoting mends it.
"""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

from teacher.policies import PolicyStore, write_atomically
from tutelage.domain.errors import Conflict, DataLoss, NotFound, PreconditionFailed
from tutelage.domain.policy import Promotion

REMEMBERED = 50
"""How many earlier versions are kept in mind."""
UNREADABLE = "unreadable"
"""Stands for the version where the record is damaged."""
_log = logging.getLogger(__name__)


class Promotions:
    """The promoted version of one teacher."""

    def __init__(self, path: Path, policies: PolicyStore) -> None:
        self._path = path
        self._policies = policies
        self._lock = threading.Lock()

    def current(self) -> Promotion:
        """As recorded, whether or not it is kept; policy 0 until somebody promotes another on this base model."""
        try:
            return self._recorded()
        except DataLoss:
            return Promotion(UNREADABLE, (), self._policies.initial.created_at)

    def usable(self) -> str:
        """The promoted version, where it is kept whole; else empty, and the log says why."""
        try:
            return self._policies.get(self._recorded().version).version
        except (DataLoss, NotFound, PreconditionFailed) as error:
            _log.error("no run can begin with what is promoted until a version is promoted anew: %s", error)
            return ""

    def promote(self, expected: str, version: str) -> Promotion:
        """Make `version` the promoted one where `expected` is.

        Conflict when another is, NotFound for a version that is not kept, DataLoss for one that is damaged. Promoting
        the version before is going back: it leaves the list of earlier ones as if it had never been left. A record
        that is damaged, or of another base model, is replaced.
        """
        self._policies.get(version)
        with self._lock:
            now = self.current()
            if now.version != expected:
                raise Conflict(f"{now.version!r} is promoted, not {expected!r}")
            if now.version == version:
                return now
            back = now.previous_versions[:1] == (version,)
            left = () if now.version == UNREADABLE else (now.version,)
            previous = now.previous_versions[1:] if back else (*left, *now.previous_versions)[:REMEMBERED]
            made = Promotion(version, previous, datetime.now(UTC))
            content = {
                "initial_version": self._policies.initial.version,
                "version": made.version,
                "previous_versions": made.previous_versions,
                "changed_at": made.changed_at.isoformat(),
            }
            write_atomically(self._path, json.dumps(content, indent=1))
            return made

    def _recorded(self) -> Promotion:
        initial = self._policies.initial
        none = Promotion(initial.version, (), initial.created_at)
        if not self._path.exists():
            return none
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            previous = tuple(str(version) for version in stored["previous_versions"])
            found = Promotion(str(stored["version"]), previous, datetime.fromisoformat(stored["changed_at"]))
            base = stored.get("initial_version", initial.version)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataLoss(f"{self._path.name}, the record of what is promoted, is damaged") from error
        if base == initial.version:
            return found
        _log.warning("policy %s was promoted on another base model: on this one it is policy 0", found.version)
        return none

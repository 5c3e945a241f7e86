"""An exported policy into a folder: written aside, and there under its name only when it is whole."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tutelage.domain.errors import AlreadyExists, DataLoss
from tutelage.domain.policy import ExportedFile


class ExportFolder:
    """Takes the parts of `TeacherClient.export_policy`; a context manager whose end makes the folder."""

    def __init__(self, folder: Path) -> None:
        """AlreadyExists when the folder does."""
        if folder.exists():
            raise AlreadyExists(f"{folder} exists already")
        self.files: list[ExportedFile] = []
        self._folder = folder
        self._staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._staging.mkdir(parents=True)
        return self

    def write(self, part: ExportedFile | bytes) -> None:
        """The next part."""
        if isinstance(part, ExportedFile):
            self._close()
            self.files.append(part)
            self._stream = (self._staging / part.name).open("xb")
        elif self._stream is None:
            raise DataLoss("the export begins with bytes that belong to no file")
        else:
            self._stream.write(part)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """DataLoss when a file is not as long as announced; after any fault nothing is left."""
        self._close()
        try:
            if error is None:
                for file in self.files:
                    if (self._staging / file.name).stat().st_size != file.bytes:
                        raise DataLoss(f"{file.name} of the export is not whole")
                self._staging.rename(self._folder)
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

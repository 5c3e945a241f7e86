"""What an orchestrator is told at its start: where it remembers, whom it calls, how it listens."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from orchestrator.inbox_config import InboxConfig
from orchestrator.judge_config import JudgeSettings
from tutelage.domain.errors import FieldViolation
from tutelage.rpc.config import ADDRESS, ChannelSettings, ServerSettings, is_address
from tutelage.settings import Inconsistent, Settings


class RetrySettings(Settings):
    """How long to wait before a failed call is tried again: doubling from the first wait to the longest."""

    initial_s: float = Field(default=1.0, gt=0, le=3600)
    """First wait, in seconds."""
    maximum_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest wait, in seconds."""
    factor: float = Field(default=2.0, ge=1, le=10)
    """What each wait is multiplied by."""


class StudentChannel(ChannelSettings):
    """A logical student: where its replicas are, and how they are reached. At least one address is needed.

    `host:port` is one replica; `dns:host:port` is a replica for each address that the name resolves to.
    """

    address: str = ""
    """host:port of the only replica, or `dns:host:port`."""
    addresses: tuple[str, ...] = ()
    """Further addresses, in the same forms."""
    addresses_file: Path | None = None
    """File with further addresses, one a line; read again like names are resolved again, so replicas come and go."""

    @field_validator("addresses")
    @classmethod
    def _have_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [(index, each) for index, each in enumerate(value) if not is_address(each)]
        if wrong:
            raise Inconsistent([FieldViolation(f"[{index}]", each, ADDRESS) for index, each in wrong])
        return value

    @model_validator(mode="after")
    def _somewhere(self) -> StudentChannel:
        if not self.address and not self.addresses and self.addresses_file is None:
            raise Inconsistent.of("address", "nothing", "an address, here or by addresses or addresses_file")
        return self


class DispatchSettings(Settings):
    """How evaluations are given to the replicas of students."""

    set_aside_after: int = Field(default=3, ge=1, le=100)
    """Failures in a row after which a replica gets no work until it answers again."""
    retry_budget: float = Field(default=20.0, ge=2)
    """Failures that a student's evaluations may have at once before every retry waits its longest."""
    report_s: float = Field(default=60.0, gt=0)
    """Seconds between two questions to a replica how many slots are free."""
    resolve_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks at names and address files."""


class OrchestratorSettings(Settings):
    """Settings of `tutelage orchestrator serve`."""

    data_dir: Path = Path("orchestrator-data")
    """Folder of the SQLite file; made when missing. A local disk, not a network share."""
    database_url: str | None = None
    """`sqlite:///file` or `postgresql://user@host/name`; nothing means `orchestrator.sqlite` in `data_dir`."""
    teacher: ChannelSettings
    """How the teacher is reached."""
    students: dict[str, StudentChannel] = Field(min_length=1)
    """Logical students by name, and how each is reached."""
    dispatch: DispatchSettings = Field(default_factory=DispatchSettings)
    """How evaluations are given to the replicas of students."""
    retry: RetrySettings = Field(default_factory=RetrySettings)
    """Waits between attempts of a call that failed."""
    describe_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds a student or teacher may take to say what it is."""
    write_timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds the teacher may take to write the candidates of one task."""
    update_timeout_s: float = Field(default=7200.0, gt=0)
    """Seconds the teacher may take for one policy update."""
    commit_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds a student may take to keep a version."""
    lease_s: float = Field(default=120.0, ge=0)
    """Seconds a student goes on with an evaluation when this orchestrator vanished; 0 leaves it to the student."""
    run_lease_s: float = Field(default=15.0, gt=0, le=3600)
    """Seconds after which another orchestrator on the same database takes over the runs of one that fell silent."""
    writers: int = Field(default=2, ge=1, le=64)
    """Tasks that are written at the same time by the teacher."""
    judges: dict[str, JudgeSettings] = Field(default_factory=dict)
    """Judges by name: models behind OpenAI-compatible endpoints that grade stored answers of runs that name them."""
    inboxes: dict[str, InboxConfig] = Field(default_factory=dict)
    """Inboxes by name: documents that students learn in scheduled windows."""
    server: ServerSettings = Field(default_factory=ServerSettings)
    """How the orchestrator listens."""

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        prefixes = ("sqlite:", "sqlite+aiosqlite:", "postgresql:", "postgres:", "postgresql+psycopg:")
        if value is None:
            return None
        if not value.startswith(prefixes):
            raise ValueError("a URL that starts with sqlite: or postgresql:")
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            raise ValueError("sqlite:///file or postgresql://user@host:port/name") from None
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise ValueError("sqlite:///file: what is only in memory is lost, and has one connection")
        return value

    @field_validator("students")
    @classmethod
    def _plain_names(cls, value: dict[str, StudentChannel]) -> dict[str, StudentChannel]:
        allowed = "a name of 1 to 64 letters, digits, '-', '_' and '.'"
        wrong = [name for name in value if len(name) > 64 or not re.fullmatch(r"[\w.-]+", name)]
        if wrong:
            raise Inconsistent([FieldViolation(name, name, allowed) for name in wrong])
        return value

    @model_validator(mode="after")
    def _inboxes_fit(self) -> OrchestratorSettings:
        problems: list[FieldViolation] = []
        folders: set[Path] = set()
        for name, inbox in self.inboxes.items():
            if not re.fullmatch(r"[a-z0-9_-]{1,32}", name):
                allowed = "a name of 1 to 32 characters of a-z, 0-9, '-', '_'"
                problems.append(FieldViolation(f"inboxes.{name}", name, allowed))
            problems += [
                FieldViolation(
                    f"inboxes.{name}.students[{index}]", student, f"one of students ({', '.join(self.students)})"
                )
                for index, student in enumerate(inbox.students)
                if student not in self.students
            ]
            if inbox.folder is not None and inbox.folder.absolute() in folders:
                allowed = "a folder that no other inbox has"
                problems.append(FieldViolation(f"inboxes.{name}.folder", str(inbox.folder), allowed))
            folders |= {inbox.folder.absolute()} if inbox.folder is not None else set()
        if problems:
            raise Inconsistent(problems)
        return self

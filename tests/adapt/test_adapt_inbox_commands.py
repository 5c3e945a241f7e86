"""The inbox as its users meet it: submitted over gRPC by the command line, worked off, listed."""

from __future__ import annotations

import json
import time
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator import inbox_worker
from tutelage.cli.main import app, explain
from tutelage.domain.errors import NotFound
from tutelage.domain.inbox import Inbox, InboxDocument, InboxDocumentState, InboxOutcome
from tutelage.wire.inbox import inbox_document_from_wire, inbox_document_to_wire, inbox_from_wire, inbox_to_wire

DOCUMENTS = "\n".join(
    json.dumps({"id": name, "title": f"Title {name}", "text": "Text.", "questions": [{"question": "?", "answer": "!"}]})
    for name in ("d1", "d2")
)
# A window that opens every minute and stays open for two is always open.
ALWAYS = {"students": ["a", "b"], "candidates": 2, "policy": "initial", "cron": "* * * * *", "window_minutes": 2}


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inbox", *arguments], env={"COLUMNS": "200"})


def test_documents_are_submitted_worked_off_and_listed(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_worker, "RUN_LOOK_S", 0.05)
    file = tmp_path / "documents.jsonl"
    file.write_text(DOCUMENTS, encoding="utf-8")
    inboxes = {"news": ALWAYS, "later": ALWAYS | {"cron": "0 0 29 2 *", "time_zone": "Asia/Kathmandu"}}
    with served(inboxes=inboxes) as address:
        at = ("--orchestrator", address)
        told = call("submit", "news", str(file), *at)
        assert told.exit_code == 0, told.output
        assert "2 documents taken in, 0 were there before" in told.stdout
        assert json.loads(call("submit", "news", str(file), "--json", *at).stdout)["known"] == 2
        deadline = time.monotonic() + 60
        while (shown := json.loads(call("show", "news", "--json", *at).stdout))["inbox"]["done"] < 2:
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        assert [item["state"] for item in shown["documents"]] == ["done", "done"]
        assert all(each["committed"] for item in shown["documents"] for each in item["outcomes"])
        table = call("show", "news", *at).stdout
        assert "Title d1" in table
        assert "submitted" in table
        assert table.count("committed") == 4
        listed = call("list", *at).stdout
        assert "0 0 29 2 * Asia/Kathmandu" in listed
        assert "open until" in listed
        assert json.loads(call("list", "--json", *at).stdout)[1]["name"] == "news"
        unknown = call("submit", "old", str(file), *at)
        assert isinstance(unknown.exception, NotFound)
        message, code = explain(unknown.exception)
        assert "later, news" in message
        assert code == 2
        run_id = shown["documents"][0]["run_id"]
        report = CliRunner().invoke(app, ["run", "report", run_id, "--format", "csv", *at])
        assert report.stdout.startswith("run_id,round,task_id")
        compared = CliRunner().invoke(
            app,
            ["run", "compare", *[shown["documents"][0]["run_id"]] * 2, "--format", "json", "--orchestrator", address],
        )
        assert json.loads(compared.stdout)["shared_documents"] == ["d1", "d2"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXT.filter(str.strip)
TIMES = st.datetimes(timezones=st.just(UTC))
COUNTS = st.integers(0, 2**31 - 1)


@given(
    st.builds(
        Inbox, NAMES, st.lists(NAMES).map(tuple), NAMES, NAMES, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS,
        st.none() | TIMES, st.none() | TIMES, COUNTS, TIMES, TEXT,
    )
)  # fmt: skip
def test_an_inbox_survives_the_wire(inbox: Inbox) -> None:
    assert inbox_from_wire(inbox_to_wire(inbox)) == inbox


@given(
    st.builds(
        InboxDocument, NAMES, TEXT, TEXT, TIMES, st.sampled_from(InboxDocumentState), TEXT, COUNTS, TEXT,
        st.lists(st.builds(InboxOutcome, NAMES, st.booleans(), TEXT, TEXT, st.booleans())).map(tuple),
    )
)  # fmt: skip
def test_a_document_survives_the_wire(document: InboxDocument) -> None:
    assert inbox_document_from_wire(inbox_document_to_wire(document)) == document

"""Settings files: every mistake is named by its field, and the table documents every field."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pydantic
import pytest

from tutelage.domain.errors import InvalidInput
from tutelage.domain.self_edit import Schedule
from tutelage.rpc.config import ChannelSettings, ServerSettings, is_loopback
from tutelage.rpc.logging import JsonFormatter, PlainFormatter, bind
from tutelage.settings import Inconsistent, Settings, load_settings, parse_settings, settings_table
from tutelage.yaml_mapping import parse_mapping


class Example(Settings):
    rate: float = pydantic.Field(default=1e-3, gt=0)
    """Step size | of the example."""
    server: ServerSettings = ServerSettings()
    """The server."""
    students: dict[str, ChannelSettings] = pydantic.Field(default_factory=dict)
    """Students by name."""
    schedule: Schedule | None = None
    """How the rate goes."""


def test_every_violation_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text("rate: -1\nserver: {hots: x, tls: {bad: 1}}\nstudents: {a: {adress: x}}\n")
    with pytest.raises(InvalidInput) as caught:
        load_settings(path, Example)
    found = {violation.field.removeprefix(f"{path}: "): violation for violation in caught.value.violations}
    assert {"rate", "server.hots", "server.tls.bad", "server.tls.key", "students.a.adress"} <= found.keys()
    assert "host, " in found["server.hots"].allowed
    assert found["students.a.adress"].allowed.startswith("one of the keys address, ca")
    assert found["rate"].value == "-1"


@pytest.mark.parametrize("text", ["a: [", "rate: 1\nrate: 2", "- 1", "!!python/object:os.system {}"])
def test_what_is_not_a_mapping_of_settings_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_settings(text, Example, source="x.yaml")


@pytest.mark.parametrize(
    "text",
    ["rate: 2024-13-45", "rate: 0x_", "rate: " + "1" * 5000, "rate: 0x" + "f" * 5000, "[" * 3000],
    ids=["no date", "no digits", "too many digits", "too many hexadecimal digits", "too deep"],
)
def test_values_that_cannot_be_read_are_bad_input(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"x\.yaml"):
        parse_settings(text, Example, source="x.yaml")


def test_numbers_as_people_write_them_and_defaults() -> None:
    assert parse_settings("rate: 1e-4", Example).rate == 1e-4
    assert parse_settings("", Example) == Example()
    with pytest.raises(InvalidInput, match="readable"):
        load_settings("/nonexistent/x.yaml", Example)


class Shape(Settings):
    sides: int = pydantic.Field(default=3, ge=3)
    names: tuple[str, ...] = pydantic.Field(default=("a",), min_length=1)
    code: str = pydantic.Field(default="A", pattern="^[A-Z]$")

    @pydantic.model_validator(mode="after")
    def _named(self) -> Shape:
        if len(self.names) > self.sides:
            raise Inconsistent.of("names", ", ".join(self.names), f"sides ({self.sides}) at most")
        return self


class Drawing(Settings):
    shape: str | Shape = "circle"
    parts: dict[str, Shape] = pydantic.Field(default_factory=dict)
    scale: float | None = None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("parts: {a: {names: [b, c, d, e]}}", "parts.a.names: 'b, c, d, e' is not allowed; allowed: sides (3) at most"),
        ("shape: {names: [b, c, d, e]}", "shape.names: 'b, c, d, e' is not allowed; allowed: sides (3) at most"),
        ("shape: {sides: 2}", "shape.sides: '2' is not allowed; allowed: greater than or equal to 3"),
        (
            "shape: 3",
            "shape: '3' is not allowed; allowed: text, in quotes where YAML takes it for something else; or a mapping",
        ),
        ("parts: {str: {names: b}}", "parts.str.names: 'b' is not allowed; allowed: a list"),
        ("parts: {str: {names: []}}", "parts.str.names: '[]' is not allowed; allowed: at least 1 entries"),
        ("parts: {str: {code: ab}}", "parts.str.code: 'ab' is not allowed; allowed: text of the form ^[A-Z]$"),
        ("parts: [a]", "parts: \"['a']\" is not allowed; allowed: a mapping"),
        ("scale: wide", "scale: 'wide' is not allowed; allowed: a number"),
    ],
)
def test_a_mistake_is_told_by_its_own_field_in_the_words_of_yaml(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings(text, Drawing)
    assert str(caught.value) == told


class Counted(Settings):
    candidates: int = 4
    slots: int | None = None
    rate: float = 0.5
    weights: dict[str, float] = pydantic.Field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    share: bool | float = False
    options: dict[str, Any] = pydantic.Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("candidates: true", "candidates: 'True' is not allowed; allowed: a whole number"),
        ("slots: yes", "slots: 'True' is not allowed; allowed: a whole number"),
        ("rate: false", "rate: 'False' is not allowed; allowed: a number"),
        ("weights: {contains: true}", "weights.contains: 'True' is not allowed; allowed: a number"),
        ("sizes: [1, off]", "sizes[1]: 'False' is not allowed; allowed: a whole number"),
    ],
)
def test_true_and_false_are_no_numbers(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_settings(text, Counted)
    assert str(caught.value) == told


def test_true_and_false_stay_where_they_may_be_and_numbers_are_read_as_before() -> None:
    read = parse_settings("{share: true, options: {whole: true}, candidates: 1e1, sizes: [2], rate: 1}", Counted)
    assert read == Counted(share=True, options={"whole": True}, candidates=10, sizes=(2,), rate=1.0)


def test_table_has_every_field_with_its_docstring() -> None:
    table = settings_table(Example)
    assert "| `rate` | float | `0.001` | Step size \\| of the example. |" in table
    assert "| `server.tls.certificate` | Path | required | The server's certificate chain. |" in table
    assert "`students.<name>.address`" in table
    assert "| `schedule` | `constant` or `linear` or `cosine` or nothing | nothing | How the rate goes. |" in table


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_bound_fields_are_in_each_line_and_come_off() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("example")
    logger.addHandler(handler)
    with bind(run_id="r1", evaluation_id=""):
        logger.info("one")
    logger.info("two")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["run_id"] == "r1"
    assert "evaluation_id" not in first
    assert "run_id" not in second


def test_a_caller_cannot_write_a_log_line_of_its_own() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter())
    logger = logging.Logger("example")
    logger.addHandler(handler)
    with bind(run_id="r1]\n2026-01-01T00:00:00.000Z ERROR   student: forged " + "y" * 10_000):
        logger.info("refused: %s", "a\r\nb")
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("INFO    example: refused: a")
    assert [line[:12] for line in others] == ["    b [run_i", "    2026-01-"]
    assert len(stream.getvalue()) < 400


def test_yaml_whose_aliases_name_more_than_memory_holds_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(InvalidInput, match=r"aliases of aliases.*at most 1,000,000 entries"):
        parse_settings("options:\n" + "".join(f"  {line}\n" for line in lines), Counted)
    with pytest.raises(InvalidInput, match=r"line 1, column 10.*recursive"):
        parse_settings("options: &x {a: {b: *x}}", Counted)
    read = parse_settings("weights: &w {contains: 1}\noptions: {w: *w, more: {<<: *w, exact: 2}}", Counted)
    assert read.options == {"w": {"contains": 1}, "more": {"contains": 1, "exact": 2}}


@pytest.mark.parametrize(
    "address",
    [
        *["localhost", "127.0.0.1:", ":7070", "http://127.0.0.1:7070", "a:b", "a:65536", " ", "a b:1", "a/b:1"],
        *["fe80::1", "::1", "fe80::1:7070", "[::1]", "[::1:7070", "[a]:7070", "ipv6:::1", "dns:///fe80::1"],
    ],
)
def test_an_address_without_a_host_and_a_port_is_refused(address: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"students\.a\.address: .* is not allowed; allowed: host:port of the service"
    ):
        parse_settings({"students": {"a": {"address": address}}}, Example)


@pytest.mark.parametrize(
    "address",
    [
        *["localhost:7070", "10.0.0.7:1", "dns:a.svc:7070", "dns:///a.svc:7070", "ipv4:10.0.0.7:1", "unix:/run/a.sock"],
        *["[::1]:7070", "[fe80::1%eth0]:7070", "ipv6:[::1]:7070", "dns:///[::1]:7070"],
    ],
)
def test_an_address_that_can_be_reached_is_taken(address: str) -> None:
    assert ChannelSettings(address=address).address == address


def test_merges_of_merges_hold_each_key_once() -> None:
    """Each of nine lines that merges the one before ten times would else hold ten times its keys: none would end."""
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: {i}" for i in range(10)) + "}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k0: own, n: {n}}}" for n in range(1, 10)]
    read = parse_mapping("\n".join(lines))
    assert read["a9"] == {**{f"k{i}": i for i in range(10)}, "k0": "own", "n": 9}


def test_the_first_of_merged_mappings_counts_and_what_stands_beside_them_more() -> None:
    text = "one: &one {a: 1, b: 1}\ntwo: &two {a: 2, b: 2, c: 2}\nboth: {<<: [*one, *two], b: 3}"
    assert parse_mapping(text)["both"] == {"a": 1, "b": 3, "c": 2}
    many = f"one: &one {{a: 1}}\nall: {{<<: [{', '.join(['*one'] * 1001)}]}}"
    with pytest.raises(InvalidInput, match=r"line 2, column \d+: '<< merges more than 1000 mappings or keys'"):
        parse_mapping(many)

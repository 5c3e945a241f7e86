"""Settings files: YAML into frozen models, with every mistake named by its dotted field."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic_core import PydanticKnownError, PydanticUndefined

from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.yaml_mapping import parse_mapping


class Settings(pydantic.BaseModel):
    """Base of all settings: frozen, unknown keys refused, field docstrings are the documentation."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        # pydantic takes true for 1.
        held = _members(cls.model_fields[str(info.field_name)].annotation)
        number = next((each for each in held if each in (int, float)), None)
        if number is None or bool in held or Any in held:
            return value
        if isinstance(value, bool):
            raise PydanticKnownError("int_type" if number is int else "float_type")
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        allowed = _ALLOWED["int_type" if number is int else "float_type"]
        wrong = [(f"[{at}]" if isinstance(at, int) else str(at), each) for at, each in items if isinstance(each, bool)]
        if wrong:
            raise Inconsistent([FieldViolation(at, str(each), allowed) for at, each in wrong])
        return value


SettingsT = TypeVar("SettingsT", bound=pydantic.BaseModel)


class Inconsistent(ValueError):
    """What settings that are right one by one get wrong together; raised by a model's validator.

    The fields are below the model that raises it, and are told as if each had been found wrong by itself.
    """

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(map(str, violations)))

    @classmethod
    def of(cls, field: str, value: object, allowed: str) -> Inconsistent:
        return cls([FieldViolation(field, "nothing" if value is None else str(value), allowed)])


def load_settings(path: str | Path, model: type[SettingsT]) -> SettingsT:
    """The model from a YAML file; InvalidInput names every wrong field, or the file when it cannot be read."""
    return parse_settings(read_yaml(path), model, source=str(path))


def read_yaml(path: str | Path) -> str:
    """The text of a YAML file; InvalidInput names the file when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInput.of("config", path, f"a readable YAML file ({reason})") from None


def parse_settings(document: Mapping[str, Any] | str, model: type[SettingsT], source: str = "") -> SettingsT:
    """The model from a mapping or YAML text; `source` (a file's name) precedes the fields in errors."""
    prefix = f"{source}: " if source else ""
    content = parse_mapping(document, source) if isinstance(document, str) else dict(document)
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise InvalidInput(violations_of(error, model, prefix)) from None


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text or "document"


_ALLOWED = {
    "string_type": "text, in quotes where YAML takes it for something else",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
}
"""What pydantic says in terms of Python, in terms of YAML."""


def violations_of(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel], prefix: str = ""
) -> list[FieldViolation]:
    """Every mistake that validating `model` found, by its dotted field behind `prefix`."""
    found: list[FieldViolation] = []
    for item in error.errors(include_url=False):
        location = _without_branches(model, item["loc"])
        together = item.get("ctx", {}).get("error")
        if isinstance(together, Inconsistent):
            above = _dotted(location) if location else ""
            found += [replace(each, field=prefix + _below(above, each.field)) for each in together.violations]
        else:
            found.append(_violation(item, location, model, prefix))
    return _one_a_field(found)


def _below(above: str, field: str) -> str:
    return f"{above}.{field}" if above and not field.startswith("[") else above + field


def _one_a_field(found: Sequence[FieldViolation]) -> list[FieldViolation]:
    """Of a field that may be one type or another: what each of them wants, or what is wrong in the one that it is."""
    by_field: dict[str, FieldViolation] = {}
    for each in found:
        known = by_field.get(each.field)
        both = known is not None and known.value == each.value and known.allowed != each.allowed
        by_field[each.field] = replace(known, allowed=f"{known.allowed}; or {each.allowed}") if known and both else each
    fields = tuple(by_field)
    return [
        each
        for field, each in by_field.items()
        if not any(other.startswith((f"{field}.", f"{field}[")) for other in fields)
    ]


def _without_branches(model: type[pydantic.BaseModel], location: Sequence[str | int]) -> tuple[str | int, ...]:
    """A location without the names of the types that pydantic tried for a field that may be one or another."""
    kept: list[str | int] = []
    branch = False
    for part in location:
        if branch:
            branch = False
            continue
        owner = _model_at(model, kept)
        kept.append(part)
        info = owner.model_fields.get(part) if owner and isinstance(part, str) else None
        branch = info is not None and _has_branches(info.annotation)
    return tuple(kept)


def _has_branches(annotation: Any) -> bool:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return False
    return sum(each is not type(None) for each in typing.get_args(annotation)) > 1


def _violation(
    item: Any, location: Sequence[str | int], model: type[pydantic.BaseModel], prefix: str
) -> FieldViolation:
    field = prefix + _dotted(location)
    kind = item["type"]
    if kind == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        names = sorted(owner.model_fields) if owner else []
        return FieldViolation(field, str(location[-1]), "one of the keys " + ", ".join(names))
    if kind == "missing":
        return FieldViolation(field, "nothing", "a value: the key is required")
    if kind in _ALLOWED:
        allowed = _ALLOWED[kind].format(**item.get("ctx", {}))
    else:
        allowed = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return FieldViolation(field, str(item["input"])[:200], allowed)


def _members(annotation: Any) -> list[Any]:
    """The types an annotation may hold: members of unions, what lists and mappings contain."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType) or origin is not None:
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]


def _model_at(model: type[pydantic.BaseModel], location: Sequence[str | int]) -> type[pydantic.BaseModel] | None:
    """The model that a location leads to; parts that are keys, indices or union tags are passed over."""
    current: type[pydantic.BaseModel] | None = model
    for part in location:
        if current is None or not isinstance(part, str) or part not in current.model_fields:
            continue
        members = _members(current.model_fields[part].annotation)
        current = next((m for m in members if isinstance(m, type) and issubclass(m, pydantic.BaseModel)), None)
    return current


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in typing.get_args(annotation))
    if origin is not None:
        arguments = ", ".join("..." if a is Ellipsis else _type_name(a) for a in typing.get_args(annotation))
        return f"{getattr(origin, '__name__', origin)}[{arguments}]"
    if annotation is type(None):
        return "nothing"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{each.value}`" for each in annotation)
    return getattr(annotation, "__name__", str(annotation))


def _default_text(info: Any) -> str:
    if info.is_required():
        return "required"
    value = info.default_factory() if info.default_factory is not None else info.default
    if value is PydanticUndefined:
        return ""
    if isinstance(value, pydantic.BaseModel):
        return ""
    if value is None:
        return "nothing"
    return f"`{getattr(value, 'value', value)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _field_docs(model: type[pydantic.BaseModel]) -> dict[str, str]:
    """The fields' docstrings by name, read from the source: pydantic would read it for every class at every start."""
    found = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, pydantic.BaseModel) and owner is not pydantic.BaseModel:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            for field, doc in itertools.pairwise(getattr(tree, "body", ())):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    match doc:
                        case ast.Expr(ast.Constant(str(text))):
                            found[field.target.id] = inspect.cleandoc(text)
    return found


def _rows(model: type[pydantic.BaseModel], prefix: str, seen: tuple[type, ...]) -> list[str]:
    rows = []
    docs = _field_docs(model)
    for name, info in model.model_fields.items():
        members = _members(info.annotation)
        nested = [m for m in members if isinstance(m, type) and issubclass(m, pydantic.BaseModel) and m not in seen]
        keyed = typing.get_origin(info.annotation) is dict
        path = f"{prefix}{name}"
        cells = (f"`{path}`", _type_name(info.annotation), _default_text(info), docs.get(name, ""))
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        for inner in nested:
            rows.extend(_rows(inner, f"{path}.<name>." if keyed else f"{path}.", (*seen, inner)))
    return rows


def settings_table(model: type[pydantic.BaseModel]) -> str:
    """A markdown table of every field, nested ones by dotted path: field, type, default, docstring."""
    head = ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join(head + _rows(model, "", (model,))) + "\n"

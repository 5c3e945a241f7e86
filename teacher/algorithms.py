"""The algorithms by name: those of this package, and those that installed packages add."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import replace
from typing import Any

from teacher.algorithm import Algorithm
from tutelage.domain.errors import FieldViolation, InvalidInput, PreconditionFailed
from tutelage.domain.policy import StaleCandidates, UpdateSettings
from tutelage.extensions import ALGORITHMS, Extended
from tutelage.settings import Settings, parse_settings

BUILT_IN = {
    "rest_em": "teacher.rest_em:RestEM",
    "grpo": "teacher.grpo:GRPO",
    "rloo": "teacher.rloo:RLOO",
    "dpo": "teacher.dpo:DPO",
}
"""Where the class of each stands; imported when it is used."""
_KNOWN: Extended[Any] = Extended(BUILT_IN, ALGORITHMS)


def algorithm_names() -> tuple[str, ...]:
    """All names, this package's first."""
    return tuple(_KNOWN)


def find_algorithm(name: str, field: str = "algorithm") -> Algorithm:
    """The algorithm of a name; InvalidInput lists the names, PreconditionFailed tells of a package that is broken."""
    if name not in _KNOWN:
        raise InvalidInput.of(field, name, "one of " + ", ".join(algorithm_names()))
    found = _KNOWN[name]
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(importlib.import_module(module), attribute)
    made = found() if inspect.isclass(found) else found
    if not isinstance(made, Algorithm):
        raise PreconditionFailed(f"algorithm {name!r} is a {type(made).__name__}, not a teacher.algorithm.Algorithm")
    return made


def options_of(algorithm: Algorithm, settings: UpdateSettings) -> Settings:
    """The algorithm's own settings; InvalidInput names each that is wrong as `settings.options.NAME`."""
    try:
        return parse_settings(settings.options, algorithm.options)
    except InvalidInput as error:
        raise InvalidInput(
            [FieldViolation(f"settings.options.{item.field}", item.value, item.allowed) for item in error.violations]
        ) from None


def settings_violations(name: str, settings: UpdateSettings, max_rank: int) -> list[FieldViolation]:
    """All that is wrong with an algorithm's name and settings; PreconditionFailed for a broken package."""
    wrong = []
    try:
        algorithm = find_algorithm(name)
        if settings.stale is StaleCandidates.WEIGHT and not algorithm.needs_log_probs:
            wrong.append(FieldViolation("settings.stale", settings.stale.value, f"drop: {name} cannot weigh by age"))
        against = getattr(options_of(algorithm, settings), "log_probs", None)
        if settings.stale is StaleCandidates.WEIGHT and against not in (None, "recorded"):
            allowed = "recorded: with stale: weight a candidate is weighed against what it was sampled with"
            wrong.append(FieldViolation("settings.options.log_probs", str(against), allowed))
    except InvalidInput as error:
        wrong += error.violations
    if not 1 <= settings.rank <= max_rank:
        wrong.append(FieldViolation("settings.rank", str(settings.rank), f"1 to {max_rank}"))
    for field, value in (("alpha", settings.alpha), ("learning_rate", settings.learning_rate)):
        if value is not None and not value > 0:
            wrong.append(FieldViolation(f"settings.{field}", str(value), "a number above 0"))
    for field, count in (("epochs", settings.epochs), ("batch_size", settings.batch_size)):
        if count < 1:
            wrong.append(FieldViolation(f"settings.{field}", str(count), "1 or more"))
    if settings.max_staleness < 0:
        wrong.append(FieldViolation("settings.max_staleness", str(settings.max_staleness), "0 or more"))
    return wrong


def with_own_rate(name: str, settings: UpdateSettings) -> UpdateSettings:
    """The settings with the algorithm's learning rate where they name none."""
    if settings.learning_rate is not None:
        return settings
    return replace(settings, learning_rate=find_algorithm(name).learning_rate)

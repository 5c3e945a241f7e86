"""What the HTML pages share: templates without scripts or network, and how numbers are written in them."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from orchestrator.report.failures import describe_rejection

MINUS = "−"


def template(name: str) -> Template:
    """A template in which all that comes from a run is escaped and what is missing is an error."""
    environment = Environment(
        loader=PackageLoader("orchestrator", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "score": score,
        "duration": duration,
        "memory": memory,
        "logged": logged,
        "short": short,
        "rejection": describe_rejection,
    }
    return environment.get_template(name)


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.125`, with a true minus sign; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}".replace("-", MINUS)


def score(value: float, grader: str, *, sign: bool = False) -> str:
    """A mean score in the grader's unit: nats a token for loglik, per cent for all others."""
    scaled, digits = (value, 2) if grader == "loglik" else (value * 100, 1)
    return (f"{scaled:+.{digits}f}" if sign else f"{scaled:.{digits}f}").replace("-", MINUS)


def unit(grader: str) -> str:
    """What `score` writes a grader's scores in."""
    return "nats/token" if grader == "loglik" else "%"


def duration(seconds: float | None) -> str:
    """Such as `48 s`, `12 min 5 s` or `3 h 10 min`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(size: int) -> str:
    """Such as `740 MB` or `1.3 GB`; a dash for what is not known."""
    if not size:
        return "–"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def logged(value: float | None) -> str:
    """A number that a trainer logged, of whatever size: four digits that count."""
    return "–" if value is None else f"{value:.4g}".replace("-", MINUS)


def short(identifier: str, length: int = 12) -> str:
    """The head of a hash; shorter names stay whole."""
    return identifier if len(identifier) <= length + 4 else identifier[:length] + "…"

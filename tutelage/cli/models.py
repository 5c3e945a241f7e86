"""`tutelage models`: fetch the models a service names before it starts, and list those that are here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.listing import plain, print_json, print_table

app = typer.Typer(help="Language models on this machine.", no_args_is_help=True)

CacheDir = Annotated[
    Path | None, typer.Option(envvar="TUTELAGE_CACHE", help="Where models are kept; else ~/.cache/tutelage.")
]


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A built-in name, a folder, or a hub id.")],
    cache_dir: CacheDir = None,
) -> None:
    """Fetch a model into the cache; nothing is done when it is there."""
    from tutelage.models.registry import pull as fetch

    try:
        resolved = fetch(name, cache_dir, progress=lambda text: print(text, file=sys.stderr, flush=True))
    except ModuleNotFoundError as error:
        from tutelage.domain.errors import PreconditionFailed

        install = "pip install 'tutelage[models]'"
        raise PreconditionFailed(f"bringing a model needs {error.name!r}, which is not installed: {install}") from None
    typer.echo(f"{resolved.name} is at {resolved.path} (revision {resolved.revision[:12]})")


@app.command("list")
def list_models(
    cache_dir: CacheDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the built-in models and whether they are in the cache; --json shows where as well."""
    from tutelage.models.registry import list_models as known_models

    entries = [plain(entry) for entry in known_models(cache_dir)]
    if as_json:
        print_json(entries)
        return
    rows = [
        (item["name"], "yes" if item["cached"] else "no", item["revision"][:12], item["license"], item["download_mb"])
        for item in entries
    ]
    print_table(("model", "here", "revision", "license", "MB"), rows, "no models")
    for item in entries:
        if item["damaged"]:
            typer.echo(f"{item['name']} is damaged: delete {item['path']} and pull it again")

"""Find a model by name: a built-in name, a local folder, or a hub id; and say exactly which weights it is.

A revision is the SHA-256 over the sorted (file name, file SHA-256) of the files that make the model, so that two
machines with equal revisions answer alike; for a hub id it is the hub's commit.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from tutelage.domain.errors import DataLoss, InvalidInput, NotFound
from tutelage.models.builtin import BUILTIN_MODELS, fetch_gguf, file_sha256

MANIFEST = "tutelage-model.json"
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedModel:
    name: str
    path: Path
    revision: str


@dataclass(frozen=True)
class ModelEntry:
    name: str
    cached: bool
    revision: str
    """Empty until the model is in the cache."""
    license: str
    download_mb: int
    path: str
    damaged: bool = False
    """Whether something lies in the cache that is not whole: `path` is the folder to delete, `cached` is false."""


def default_cache_dir() -> Path:
    """`TUTELAGE_CACHE`, else `~/.cache/tutelage`."""
    return Path(os.environ.get("TUTELAGE_CACHE") or Path.home() / ".cache" / "tutelage").expanduser()


def resolve(name: str, cache_dir: Path | str | None = None) -> ResolvedModel:
    """The folder and revision of `name`, fetched first where it is not here.

    NotFound for an unknown name or an unreachable hub id, InvalidInput for a folder without a causal model.
    """
    return pull(name, cache_dir)


def pull(name: str, cache_dir: Path | str | None = None, progress: Progress | None = None) -> ResolvedModel:
    """Like `resolve`, and tells `progress` each step of a download in a sentence."""
    say = progress or (lambda text: None)
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    if name in BUILTIN_MODELS:
        return _builtin(name, cache, say)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_causal(folder)
        return ResolvedModel(name, folder, folder_revision(folder))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub(name, say)
    known = ", ".join(BUILTIN_MODELS)
    raise NotFound("model", name, f"give one of {known}, an existing folder, or a hub id (owner/name)")


def list_models(cache_dir: Path | str | None = None) -> list[ModelEntry]:
    """The built-in models, and whether each is in the cache."""
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    entries = []
    for name, model in BUILTIN_MODELS.items():
        folder = _builtin_folder(cache, name)
        there = (folder / MANIFEST).is_file()
        try:
            revision = _manifest_revision(folder) if there else ""
        except DataLoss:
            # One damaged model hides no other.
            revision = ""
        path = str(folder) if there else ""
        damaged = there and not revision
        entries.append(
            ModelEntry(name, bool(revision), revision, model.license, model.megabytes, path, damaged=damaged)
        )
    return entries


def folder_revision(folder: Path) -> str:
    """Lower-case hex SHA-256 over the sorted names and hashes of the model's files in `folder`."""
    return _revision(_file_hashes(folder))


def _file_hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: file_sha256(path) for path in paths if any(fnmatch.fnmatch(path.name, p) for p in _MODEL_FILES)}


def _revision(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def _builtin_folder(cache: Path, name: str) -> Path:
    # The pinned hash is in the folder's name: a new pin is a new folder, and the old one stays whole for who uses it.
    return cache / "models" / f"{name}-{BUILTIN_MODELS[name].gguf_sha256[:12]}"


def _manifest_revision(folder: Path) -> str:
    try:
        return str(json.loads((folder / MANIFEST).read_text())["revision"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataLoss(f"the manifest in {folder} is damaged; delete the folder and pull again") from error


def _builtin(name: str, cache: Path, say: Progress) -> ResolvedModel:
    folder = _builtin_folder(cache, name)
    if not (folder / MANIFEST).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            # Whoever waited for the lock finds what the other process made.
            if not (folder / MANIFEST).is_file():
                _make_builtin(name, folder, say)
    return ResolvedModel(name, folder, _manifest_revision(folder))


def _make_builtin(name: str, folder: Path, say: Progress) -> None:
    from tutelage.models.conversion import convert_gguf

    model = BUILTIN_MODELS[name]
    scratch_prefix = f".{folder.name}."
    for leftover in folder.parent.glob(f"{scratch_prefix}*"):
        # Whoever made it was killed: it would hold the lock otherwise.
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=scratch_prefix) as scratch:
        gguf = fetch_gguf(model, Path(scratch), say)
        say("converting the GGUF to safetensors (once)")
        made = Path(scratch) / "made"
        convert_gguf(gguf, made)
        hashes = _file_hashes(made)
        manifest = {"name": name, "revision": _revision(hashes), "files": hashes, "source": asdict(model)}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        # A folder without a manifest is what a killed copy left; the rename below is the moment the model exists.
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    say(f"{name} is ready")


def _hub(name: str, say: Progress) -> ResolvedModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"asking the hub for {name}")
    try:
        # Safetensors, JSON and tokenizers only: nothing that is pickled, and no code.
        path = Path(snapshot_download(name, allow_patterns=list(_MODEL_FILES)))
    except HFValidationError as error:
        raise InvalidInput.of("model", name, "a hub id (owner/name)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[:1]
        hint = f"the hub did not give it, and it is not in the hub's cache: {type(error).__name__} {''.join(reason)}"
        raise NotFound("model", name, hint) from error
    _check_causal(path)
    return ResolvedModel(name, path, path.name)


def _check_causal(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise InvalidInput.of("model", folder, "a folder with a config.json")
    try:
        architectures = json.loads(config.read_text()).get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise InvalidInput.of("model", folder, "a folder whose config.json is a JSON object") from error
    if not any(str(item).endswith(("ForCausalLM", "LMHeadModel")) for item in architectures):
        given = ", ".join(map(str, architectures)) or "no architectures"
        raise InvalidInput.of(
            "model", f"{folder} ({given})", "a causal language model (architectures with ForCausalLM)"
        )
    if not list(folder.glob("*.safetensors")):
        raise InvalidInput.of("model", folder, "a folder with safetensors weights")

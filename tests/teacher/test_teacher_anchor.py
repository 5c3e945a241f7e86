"""An anchor keeps what is not learnt as probable as the parent had it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, OPTConfig
from trl import GRPOConfig, RLOOConfig, SFTConfig

from teacher.algorithm import Sample, SampleGroup, Training
from teacher.algorithms import find_algorithm
from teacher.anchor import ROWS, STARTS, Anchor, Anchored, anchored
from teacher.candidate_part import Part, learning_part
from teacher.rest_em import RestEMOptions
from teacher.scored_trainer import ScoredGRPOTrainer, ScoredRLOOTrainer, ScoredRow, build_trainer, shape_arguments
from teacher.trl_training import common_arguments
from teacher.weighted_sft import WEIGHT, AnchoredSFTTrainer
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import UpdateSettings
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model

NEWLINE = 202
"""In the tiny model's vocabulary."""
LINE, NOTES = (20, 21, NEWLINE), (40, 41, 42, 43, 44, 2)
PROMPTS = ((5, 6, 7, 8), (9, 10, 11, 12, 13, 14))
FORCED = (True, False, True) + (False,) * len(NOTES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("anchor") / "model"))


def policy(folder: str) -> Any:
    torch.manual_seed(0)
    model = load_model(folder, quantisation="none", threads=1, compute_dtype="float32").model
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))


def samples(reward: float = 1.0) -> list[Sample]:
    ids = LINE + NOTES
    return [
        Sample(f"s{place}", prompt, ids, reward - place, log_probs=(-1.0,) * len(ids), forced=FORCED)
        for place, prompt in enumerate(PROMPTS)
    ]


def log_probs_TV(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Of every token, at each of the completion's places."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].float()
    return torch.log_softmax(logits_TV[len(prompt) - 1 : -1], -1)


def training_of(model: Any, folder: str, scratch: Path, options: Any, **settings: Any) -> Training:
    tokenizer = load_model(folder, quantisation="none", threads=1).tokenizer
    assert tokenizer.decode([LINE[2]]) == "\n"
    chosen = UpdateSettings(rank=2, alpha=4.0, **settings)
    group = SampleGroup("g", tuple(samples()))
    return Training(model, tokenizer, "cpu", (group,), chosen, options, 1, scratch, lambda *step: None)


def test_the_loss_is_the_kl_from_the_parent_at_the_kept_places(folder: str) -> None:
    model, kept = policy(folder), (3, 4, 7)
    rows = [Anchored(sample, kept) for sample in samples()]
    anchor = Anchor(model, rows, 0.5)
    before = [log_probs_TV(model, prompt, LINE + NOTES) for prompt in PROMPTS]

    def loss() -> float:
        """As a trainer reads them: prompts padded on the left."""
        ids = [[0] * (6 - len(prompt)) + [*prompt, *LINE, *NOTES] for prompt in PROMPTS]
        mask = [[0] * (6 - len(prompt)) + [1] * (len(prompt) + 9) for prompt in PROMPTS]
        model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
        return float(anchor.loss([0, 1], [6, 6]))

    assert loss() == pytest.approx(0, abs=1e-6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = []
    for prompt, parent_TV in zip(PROMPTS, before, strict=True):
        now_TV = log_probs_TV(model, prompt, LINE + NOTES)
        kl_T = (parent_TV.exp() * (parent_TV - now_TV)).sum(-1)
        expected.append(float(kl_T[list(kept)].mean()))
    assert min(expected) > 0.01
    assert loss() == pytest.approx(0.5 * sum(expected) / 2, rel=1e-3)


def test_held_is_what_the_policy_chose_and_does_not_learn() -> None:
    tokenizer = SimpleNamespace(decode=lambda ids: "\n" if NEWLINE in ids else "x")
    whole = Training(
        None, tokenizer, "cpu", (SampleGroup("g", tuple(samples())),), UpdateSettings(), RestEMOptions(), 1,
        Path(), lambda *step: None,
    )  # fmt: skip
    cases: list[tuple[Part, tuple[int, ...]]] = [("first_line", (3, 4, 5, 6, 7, 8)), ("notes", (1,))]
    for part, kept in cases:
        learning = learning_part(whole, part, whole=True)
        assert {row.kept for row in anchored(whole.samples, learning.samples)} == {kept}


def test_a_row_without_anything_to_hold_adds_nothing(folder: str) -> None:
    model = policy(folder)
    anchor = Anchor(model, [Anchored(samples()[0], ())], 1.0)
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert float(anchor.loss([0], [3])) == 0


def test_what_a_model_multiplies_its_logits_by_counts() -> None:
    """Granite divides them, Cohere multiplies, Gemma bends them; OPT calls what is below its decoder."""
    small: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    wide: dict[str, Any] = {**small, "intermediate_size": 16, "num_key_value_heads": 2, "pad_token_id": 0}
    configs: list[Any] = [
        GraniteConfig(**wide, logits_scaling=8.0),
        CohereConfig(**wide, logit_scale=0.25, bos_token_id=1, eos_token_id=2),
        Gemma2Config(**wide, head_dim=8, final_logit_softcapping=2.0, bos_token_id=1, eos_token_id=2),
        OPTConfig(**small, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=32),
    ]
    for config in configs:
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_config(config)
        for parameter in base.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        sample = Sample("s", (5, 6, 7), (8, 9, 10), 1.0)
        anchor = Anchor(model, [Anchored(sample, (1, 2))], 1.0)
        before_TV = log_probs_TV(model, (5, 6, 7), (8, 9, 10))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        after_TV = log_probs_TV(model, (5, 6, 7), (8, 9, 10))
        # As TRL's own loss reads it.
        base.base_model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]]))
        expected = float((before_TV.exp() * (before_TV - after_TV)).sum(-1)[1:].mean())
        assert expected > 1e-4
        assert float(anchor.loss([0], [3])) == pytest.approx(expected, rel=1e-3), config.model_type
        anchor.release()


class Pull:
    """An anchor whose gradient is 1 in each number of one tensor, whatever was read."""

    def __init__(self, model: Any) -> None:
        self.tensor = next(value for name, value in model.named_parameters() if "lora_B" in name)

    def loss(self, rows: list[int], starts: list[int]) -> torch.Tensor:
        assert (len(rows), sorted(starts)) == (len(starts), sorted(starts))
        total: torch.Tensor = self.tensor.sum()
        return total


@pytest.mark.parametrize("kind", ["rest_em", "grpo", "rloo"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_is_held_by_the_mean_over_its_rows(kind: str, passes: int, folder: str, tmp_path: Path) -> None:
    """Nothing is rewarded here, so that one step of plain gradient descent is the anchor's alone."""
    if kind == "rest_em" and passes == 1:
        passes = 4
    model = policy(folder)
    rows_a_pass = 1 if kind == "rest_em" else 2 // passes
    training = training_of(model, folder, tmp_path, RestEMOptions(part="first_line"), epochs=1, batch_size=2)
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    shared = common_arguments(training, 2) | plain | {"learning_rate": 0.1}
    shared |= {"per_device_train_batch_size": rows_a_pass, "gradient_accumulation_steps": 2 // rows_a_pass}
    if kind == "rest_em":
        data = [
            {"input_ids": [*s.prompt_ids, *s.completion_ids], "completion_mask": [0] * len(s.prompt_ids) + [1] * 9}
            | {WEIGHT: 0.0, ROWS: place, STARTS: len(s.prompt_ids)}
            for place, s in enumerate(samples())
        ]
        arguments = SFTConfig(**shared, completion_only_loss=True, packing=False, max_length=None)
        trainer: Any = AnchoredSFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(data),
            processing_class=load_model(folder, quantisation="none", threads=1).tokenizer,
        )
    else:
        config: Any = {"grpo": GRPOConfig, "rloo": RLOOConfig}[kind]
        arguments = config(**shared, **shape_arguments(training), beta=0.0)
        training = training_of(model, folder, tmp_path, RestEMOptions(), epochs=1, batch_size=2)
        trainer = build_trainer({"grpo": ScoredGRPOTrainer, "rloo": ScoredRLOOTrainer}[kind], arguments, training)
        trainer.rows = [ScoredRow(each, 0.0, torch.tensor(each.log_probs)) for each in samples()]
    pull = Pull(trainer.model)
    trainer.anchor = pull
    start = pull.tensor.detach().clone()
    trainer.train()
    assert trainer.state.global_step == 1
    torch.testing.assert_close(pull.tensor.detach(), start - 0.1)


@pytest.mark.parametrize(("name", "strength"), [("rest_em", 20.0), ("grpo", 3.0), ("rloo", 3.0)])
def test_a_line_is_learnt_and_the_notes_stay(name: str, strength: float, folder: str, tmp_path: Path) -> None:
    """Beside the same update without the anchor, which learns the line as well and moves the notes."""
    algorithm = find_algorithm(name)
    lines, notes = {}, {}
    for weight in (0.0, strength):
        model = policy(folder)
        before = [log_probs_TV(model, prompt, LINE + NOTES) for prompt in PROMPTS]
        options = algorithm.options.model_validate({"part": "first_line", "anchor": weight})
        settings: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 12, "batch_size": 2}
        training = training_of(model, folder, tmp_path, options, **settings)
        algorithm.train(training)
        model.eval()
        after = [log_probs_TV(model, prompt, LINE + NOTES) for prompt in PROMPTS]
        # The better of the two, at the token of the line that was the policy's choice.
        lines[weight] = float(after[0][1, LINE[1]] - before[0][1, LINE[1]])
        notes[weight] = sum(
            float((old.exp() * (old - new)).sum(-1)[3:].mean()) for old, new in zip(before, after, strict=True)
        )
    assert notes[strength] < 0.25 * notes[0.0]
    assert lines[strength] > 0.3 * lines[0.0] > 0


@pytest.mark.parametrize("name", ["rest_em", "grpo", "rloo"])
def test_an_anchor_needs_a_part_that_is_left_out(name: str) -> None:
    with pytest.raises(ValidationError, match="0 where part is all"):
        find_algorithm(name).options.model_validate({"anchor": 1.0})
    assert find_algorithm(name).options.model_validate({"anchor": 1.0, "part": "notes"})


def test_a_model_with_logits_of_its_own_making_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy(folder)
    base = model.get_base_model()
    forward = base.forward

    def scaled(*args: Any, **named: Any) -> Any:
        out = forward(*args, **named)
        out.logits = out.logits * 3
        return out

    monkeypatch.setattr(base, "forward", scaled)
    with pytest.raises(InvalidInput, match=r"settings\.options\.anchor: '1\.0'.*logits"):
        Anchor(model, [Anchored(samples()[0], (3,))], 1.0)

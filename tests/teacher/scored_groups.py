"""Groups of scored candidates, a tiny model's updates from them, and how much more probable these made the rewarded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from teacher.config import TeacherSettings
from teacher.update_child import learn
from teacher.update_request import lessons_of
from teacher.updates import Updates
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateRequest, UpdateResult, UpdateSettings
from tutelage.models.loading import load_model
from tutelage.v1 import policy_pb2

HASH = "h" * 64
END = 2
PROMPTS = ([5, 6, 7, 8], [9, 10, 11, 12, 13, 14])
COMPLETIONS = ([20, 21, 22, 23, END], [30, 31, 32, END], [40, 41, 42, 43, 44, 45], [50, END])
"""Of each prompt; the first is rewarded, the third was cut off."""


def token_log_probs(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits.float()[0]
    places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return [float(value) for value in torch.log_softmax(logits, -1)[places, torch.tensor(completion)]]


def relative_log_prob(model: Any) -> float:
    """Mean over prompts of the rewarded completion's log-probability a token, less the mean of the others'."""
    found = []
    for prompt in PROMPTS:
        means = [sum(each) / len(each) for each in (token_log_probs(model, prompt, c) for c in COMPLETIONS)]
        found.append(means[0] - sum(means[1:]) / (len(means) - 1))
    return sum(found) / len(found)


def rollout(model: Any, version: str, prompt: list[int], completion: list[int], **more: Any) -> bytes:
    message = policy_pb2.Rollout(
        policy_version=version,
        prompt_ids=prompt,
        completion_ids=completion,
        log_probs=token_log_probs(model, prompt, completion),
        tokenizer_hash=HASH,
        ended=completion[-1] == END,
        forced=[False, True] + [False] * (len(completion) - 2) if completion[0] == 30 else [],
        **more,
    )
    return message.SerializeToString()


def request(model: Any, parent: str, name: str, options: Mapping[str, Any], written_by: str = "") -> UpdateRequest:
    groups = []
    for p, prompt in enumerate(PROMPTS):
        scored = tuple(
            ScoredCandidate(
                f"{p}-{c}", rollout(model, written_by or parent, prompt, completion), (1.0, 0.1, 0.0, -0.2)[c]
            )
            for c, completion in enumerate(COMPLETIONS)
        )
        unscored = ScoredCandidate(f"{p}-x", rollout(model, written_by or parent, prompt, [60, END]), None)
        groups.append(CandidateGroup(f"g{p}", (*scored, unscored)))
    settings = UpdateSettings(
        rank=4, alpha=8.0, learning_rate=1e-2, epochs=6, batch_size=4, options=dict(options), max_staleness=0
    )
    return UpdateRequest(parent, name, settings, tuple(groups), 7, "run", 1)


def result_of(updates: Updates, asked: UpdateRequest) -> UpdateResult:
    *_, result = updates.update(asked)
    assert isinstance(result, UpdateResult)
    return result


def learnt(settings: TeacherSettings, asked: UpdateRequest, folder: Path, parent: Path | None = None) -> Any:
    """The model after the algorithm's training in this process, on what it selects."""
    ages = {asked.parent_version: 0}
    lessons = lessons_of(asked, HASH, ages)
    steps: list[int] = []
    fresh = load_model(settings.model, quantisation="none", threads=1)
    model = learn(
        fresh,
        asked.algorithm,
        asked.settings,
        lessons.groups,
        asked.seed,
        folder,
        lambda done, *_: steps.append(done),
        parent=parent,
    )
    assert steps
    assert steps[-1] == max(steps)
    return model.eval()

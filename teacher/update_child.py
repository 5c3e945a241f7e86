"""The process of one update: `python -m teacher.update_child FOLDER`.

The folder holds request.json and groups.safetensors (no pickle); the new adapter is written to its `adapter`. Progress
goes to stdout, one JSON object a line, and at last the most memory that was held and what the trainer logged, or what
is wrong with the request where only the trainer could see it. Standard input is the parent's lifeline: at its end the
process ends too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from teacher.algorithm import NOTHING_LOGGED, Report, Sample, SampleGroup, Training
from teacher.algorithms import find_algorithm, options_of, with_own_rate
from teacher.step_means import LoggedSteps
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import UpdateSettings

if TYPE_CHECKING:
    from tutelage.models.loading import LoadedModel

CANCELLED = 75
"""Exit code after the parent is gone or has closed the lifeline."""


def write_groups(groups: Sequence[SampleGroup], path: Path) -> None:
    """Groups as safetensors: all ids in one row, with the lengths of prompts and completions; names as metadata."""
    import torch
    from safetensors.torch import save_file

    samples = [sample for group in groups for sample in group.samples]
    numbers = {
        "ids": [token for sample in samples for token in (*sample.prompt_ids, *sample.completion_ids)],
        "prompt_lengths": [len(sample.prompt_ids) for sample in samples],
        "completion_lengths": [len(sample.completion_ids) for sample in samples],
        "recorded": [len(sample.log_probs) for sample in samples],
        "ended": [int(sample.ended) for sample in samples],
        "forced": [int(flag) for sample in samples for flag in sample.forced],
        "forced_lengths": [len(sample.forced) for sample in samples],
        "group_sizes": [len(group.samples) for group in groups],
    }
    reals = {
        "log_probs": [value for sample in samples for value in sample.log_probs],
        "rewards": [sample.reward for sample in samples],
        "temperatures": [sample.temperature for sample in samples],
        "weights": [sample.weight for sample in samples],
    }
    names = {"groups": [group.group_id for group in groups], "candidates": [s.candidate_id for s in samples]}
    save_file(
        {name: torch.tensor(values, dtype=torch.int64) for name, values in numbers.items()}
        | {name: torch.tensor(values, dtype=torch.float64) for name, values in reals.items()},
        path,
        {name: json.dumps(values) for name, values in names.items()},
    )


def read_groups(path: Path) -> tuple[SampleGroup, ...]:
    """The groups of `write_groups`."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        columns: dict[str, Any] = {name: stored.get_tensor(name).tolist() for name in stored.keys()}  # noqa: SIM118
        names = {name: json.loads(text) for name, text in stored.metadata().items()}
    ids, log_probs, forced = iter(columns["ids"]), iter(columns["log_probs"]), iter(columns["forced"])

    def taken(source: Any, count: int) -> tuple[Any, ...]:
        return tuple(next(source) for _ in range(count))

    samples = iter(
        [
            Sample(
                name,
                taken(ids, columns["prompt_lengths"][place]),
                taken(ids, columns["completion_lengths"][place]),
                columns["rewards"][place],
                taken(log_probs, columns["recorded"][place]),
                bool(columns["ended"][place]),
                tuple(bool(flag) for flag in taken(forced, columns["forced_lengths"][place])),
                columns["weights"][place],
                columns["temperatures"][place],
            )
            for place, name in enumerate(names["candidates"])
        ]
    )
    return tuple(
        SampleGroup(name, taken(samples, size))
        for name, size in zip(names["groups"], columns["group_sizes"], strict=True)
    )


def peak_memory() -> int:
    """Most memory that this process has held, in bytes.

    Not `getrusage`: on Linux its maximum begins with that of the process which started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def _end_with_parent(lifeline: TextIO) -> None:
    lifeline.read()
    os._exit(CANCELLED)


def learn(
    loaded: LoadedModel,
    name: str,
    settings: UpdateSettings,
    groups: Sequence[SampleGroup],
    seed: int,
    scratch: Path,
    report: Report,
    *,
    parent: Path | None = None,
    rows_a_pass: int = 1,
    gradient_checkpointing: bool = False,
) -> Any:
    """The base model (patched for good by its trainer) with the LoRA that the algorithm `name` trained."""
    import torch

    from teacher.policy_lora import attach_lora, without_dropout

    algorithm, settings = find_algorithm(name), with_own_rate(name, settings)
    torch.manual_seed(seed)
    without_dropout(loaded.model)
    model = attach_lora(loaded.model, settings, parent)
    algorithm.train(
        Training(
            model=model,
            tokenizer=loaded.tokenizer,
            device=loaded.device,
            groups=tuple(groups),
            settings=settings,
            options=options_of(algorithm, settings),
            seed=seed,
            scratch=scratch,
            report=report,
            rows_a_pass=rows_a_pass,
            gradient_checkpointing=gradient_checkpointing,
        )
    )
    return model


def main(folder: Path) -> None:
    """Train as request.json says. Anything but progress goes to standard error."""
    # Libraries print to stdout as they please; the protocol keeps the real one for itself.
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(sys.stdin,), daemon=True).start()
    request: dict[str, Any] = json.loads((folder / "request.json").read_text(encoding="utf-8"))

    # Imported here so that a parent that only writes groups loads no trainer.
    import torch

    from teacher.policy_lora import save_lora
    from tutelage.models.loading import load_model

    def tell(**values: Any) -> None:
        protocol.write(json.dumps(values) + "\n")
        protocol.flush()

    steps = LoggedSteps()

    def report(steps_done: int, steps_total: int, loss: float, logged: Mapping[str, float] = NOTHING_LOGGED) -> None:
        steps.add(loss, logged)
        tell(steps_done=steps_done, steps_total=steps_total, loss=loss)

    loaded = load_model(
        request["model"],
        quantisation=request["quantisation"],
        device=request["device"],
        compute_dtype=request["compute_dtype"],
        threads=request["threads"],
        cache_dir=Path(request["cache_dir"]) if request["cache_dir"] else None,
        dequantise=request["dequantise"],
    )
    scratch = folder / "scratch"
    scratch.mkdir()
    settings = UpdateSettings(**request["settings"])
    try:
        model = learn(
            loaded,
            request["algorithm"],
            settings,
            read_groups(folder / "groups.safetensors"),
            request["seed"],
            scratch,
            report,
            parent=Path(request["parent_folder"]) if request["parent_folder"] else None,
            rows_a_pass=request["rows_a_pass"] or (1 if loaded.device == "cpu" else 8),
            gradient_checkpointing=request["gradient_checkpointing"],
        )
        save_lora(model, folder / "adapter", request["model"], settings.learning_rate)
    except InvalidInput as refused:
        tell(violations=[dataclasses.asdict(violation) for violation in refused.violations])
        return
    gpu = torch.cuda.max_memory_allocated() if loaded.device != "cpu" else 0
    tell(peak_memory_bytes=peak_memory(), peak_gpu_memory_bytes=gpu, **dataclasses.asdict(steps.means()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

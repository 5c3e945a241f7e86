"""The process of one update: `python -m teacher.update_child FOLDER`.

The folder holds request.json and rows.safetensors (no pickle); the new adapter is written to its `adapter`. Progress
goes to stdout, one JSON object a line. Standard input is the parent's lifeline: at its end the process ends too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from teacher.update_request import Row
from tutelage.domain.policy import UpdateSettings

CANCELLED = 75
"""Exit code after the parent is gone or has closed the lifeline."""


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Rows as safetensors: all ids in one row, with the lengths of prompts and completions."""
    import torch
    from safetensors.torch import save_file

    flat = [token for row in rows for token in (*row.prompt_ids, *row.completion_ids)]
    save_file(
        {
            "ids": torch.tensor(flat, dtype=torch.int64),
            "prompt_lengths": torch.tensor([len(row.prompt_ids) for row in rows], dtype=torch.int64),
            "completion_lengths": torch.tensor([len(row.completion_ids) for row in rows], dtype=torch.int64),
        },
        path,
    )


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of `write_rows`."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    ids: list[int] = tensors["ids"].tolist()
    rows = []
    start = 0
    for prompt, completion in zip(
        tensors["prompt_lengths"].tolist(), tensors["completion_lengths"].tolist(), strict=True
    ):
        middle, end = start + prompt, start + prompt + completion
        rows.append(Row(tuple(ids[start:middle]), tuple(ids[middle:end])))
        start = end
    return tuple(rows)


def _end_with_parent(lifeline: TextIO) -> None:
    lifeline.read()
    os._exit(CANCELLED)


def main(folder: Path) -> None:
    """Train as request.json says. Anything but progress goes to standard error."""
    # Libraries print to stdout as they please; the protocol keeps the real one for itself.
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(sys.stdin,), daemon=True).start()
    request: dict[str, Any] = json.loads((folder / "request.json").read_text(encoding="utf-8"))

    # Imported here so that a parent that only writes rows loads no trainer.
    from teacher.rest_em import train_on_kept
    from tutelage.models.loading import load_model

    def report(done: int, total: int, loss: float) -> None:
        protocol.write(json.dumps({"steps_done": done, "steps_total": total, "loss": loss}) + "\n")
        protocol.flush()

    loaded = load_model(
        request["model"],
        quantisation=request["quantisation"],
        device=request["device"],
        compute_dtype=request["compute_dtype"],
        threads=request["threads"],
        cache_dir=Path(request["cache_dir"]) if request["cache_dir"] else None,
    )
    train_on_kept(
        loaded,
        read_rows(folder / "rows.safetensors"),
        UpdateSettings(**request["settings"]),
        request["seed"],
        parent=Path(request["parent_folder"]) if request["parent_folder"] else None,
        output=folder / "adapter",
        scratch=folder / "scratch",
        report=report,
        gradient_checkpointing=request["gradient_checkpointing"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

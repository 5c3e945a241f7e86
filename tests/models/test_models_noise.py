"""Only the lines that are known to say nothing are dropped; whatever else a library says is heard."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from tutelage.models.loading import load_model
from tutelage.models.noise import silence_known_lines, without_progress_bars
from tutelage.models.tiny import write_tiny_model


def test_other_lines_of_the_same_logger_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    logger = "bitsandbytes.backends.cpu.ops"
    silence_known_lines()
    silence_known_lines()
    logging.getLogger(logger).warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.")
    logging.getLogger(logger).warning("the weights look odd")
    assert [record.getMessage() for record in caplog.records] == ["the weights look odd"]
    assert len(logging.getLogger(logger).filters) == 1


def test_one_warning_is_ignored_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_known_lines()
        warnings.warn(
            "`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1
        )
        warnings.warn("`something_else` is deprecated", FutureWarning, stacklevel=1)
    assert [str(item.message) for item in seen] == ["`something_else` is deprecated"]


def test_loading_draws_no_bars_and_leaves_the_setting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_model(tmp_path / "model")
    capfd.readouterr()
    transformers_logging.enable_progress_bar()
    load_model(str(folder), quantisation="none", device="cpu")
    assert transformers_logging.is_progress_bar_enabled()
    assert "Loading weights" not in capfd.readouterr().err
    transformers_logging.disable_progress_bar()
    try:
        with without_progress_bars():
            pass
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()

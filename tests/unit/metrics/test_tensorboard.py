"""What TensorBoard itself reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from molgen_pretrain.metrics import MetricsLogger, TensorBoardSink


def write(directory: Path, losses: dict[int, float], resume_step: int | None = None) -> None:
    logger = MetricsLogger([TensorBoardSink(directory, resume_step)])
    assert logger.active == ("tensorboard",)
    for step, loss in losses.items():
        logger.log({"kind": "train", "step": step, "loss": loss, "phase": "stable", "nothing": None})
    logger.log({"kind": "validation", "step": max(losses), "loss": 9.0})
    logger.close()


def read(directory: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_scalars_are_named_by_kind_and_strings_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, {1: 4.0, 2: 3.0})
    assert read(tmp_path) == {"train/loss": {1: 4.0, 2: 3.0}, "validation/loss": {2: 9.0}}


def test_resumed_run_replaces_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, {1: 4.0, 2: 3.0, 3: 2.0})
    write(tmp_path, {3: 2.5, 4: 2.25}, resume_step=2)
    assert read(tmp_path)["train/loss"] == {1: 4.0, 2: 3.0, 3: 2.5, 4: 2.25}


def test_a_folder_that_cannot_be_written_turns_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tb").write_text("a file is in the way")
    logger = MetricsLogger([TensorBoardSink(tmp_path / "tb")])
    assert logger.active == ()
    assert "tensorboard is off" in caplog.text

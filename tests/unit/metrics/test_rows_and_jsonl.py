"""The record of a run: valid JSON, exact round trips, resume, torn lines, disks that refuse."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from molgen_pretrain.metrics import JsonlSink, MetricsLogger, read_rows
from molgen_pretrain.metrics.rows import plain_row


def train_row(step: int, **values: object) -> dict[str, object]:
    return {"kind": "train", "step": step, "loss": 1.0 / step, **values}


def write(path: Path, steps: range, resume_step: int | None = None) -> None:
    logger = MetricsLogger([JsonlSink(path, resume_step)])
    for step in steps:
        logger.log(train_row(step))
    logger.close()


def steps_in(path: Path) -> list[object]:
    return [row["step"] for row in read_rows(path)]


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes beyond this offset fail, after a short write up to it: a full disk, as the kernel does it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_value_comes_back_as_it_was(tmp_path: Path) -> None:
    row = {
        "kind": "train",
        "step": 3,
        "loss": 0.1 + 0.2,
        "phase": "stable",
        "ok": True,
        "none": None,
        "tokens": 2**53 - 1,
        "up": math.inf,
        "down": -math.inf,
    }
    logger = MetricsLogger([JsonlSink(tmp_path / "new" / "metrics.jsonl")])
    logger.log({**row, "nan": math.nan})
    logger.close()

    (back,) = read_rows(tmp_path / "new" / "metrics.jsonl")
    assert math.isnan(back.pop("nan"))  # type: ignore[arg-type]
    assert back == row


def test_file_is_strict_json_also_with_non_finite_values(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = MetricsLogger([JsonlSink(path)])
    logger.log(train_row(1, grad_norm=math.nan, max_loss=math.inf))
    logger.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["grad_norm"] == "NaN"


def test_tensors_and_numpy_scalars_become_numbers() -> None:
    row = plain_row({"loss": torch.tensor(1.5), "tokens": np.int64(7), "lr": np.float64(2e-4)})
    assert row == {"loss": 1.5, "tokens": 7, "lr": 2e-4}
    assert [type(value) for value in row.values()] == [float, int, float]


def test_a_value_no_sink_can_hold_is_named() -> None:
    with pytest.raises(TypeError, match="'losses' is a list"):
        plain_row({"losses": [1.0, 2.0]})


def test_rows_are_on_disk_before_close(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = MetricsLogger([JsonlSink(path)])
    logger.log(train_row(1))
    assert steps_in(path) == [1]
    logger.close()


@pytest.mark.parametrize(("resume_step", "kept"), [(None, 9), (6, 6), (0, 0), (100, 9)])
def test_resume_drops_the_steps_that_are_trained_again(tmp_path: Path, resume_step: int | None, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 10))
    write(path, range(20, 22), resume_step)
    assert steps_in(path) == [*range(1, kept + 1), 20, 21]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_validation_row_of_the_resumed_step_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = MetricsLogger([JsonlSink(path)])
    for step in (4, 5):
        logger.log({"kind": "train", "step": step, "loss": 1.0})
        logger.log({"kind": "validation", "step": step, "loss": 2.0})
    logger.close()
    write(path, range(0), resume_step=4)
    assert [(row["kind"], row["step"]) for row in read_rows(path)] == [("train", 4), ("validation", 4)]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_cut_by_a_kill_is_dropped_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    assert cut < len(last)
    path.write_bytes(whole[:-cut])

    if cut == 1:  # only the newline is missing: the row is whole
        assert steps_in(path) == [1, 2, 3]
    else:
        assert steps_in(path) == [1, 2]
        assert f"{path}:3" in caplog.text
    caplog.clear()
    write(path, range(7, 9))
    assert steps_in(path) == [1, 2, *([3] if cut == 1 else []), 7, 8]
    assert ("dropped lines 3" in caplog.text) == (cut > 1)


def test_full_disk_is_warned_about_each_time_and_loses_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = MetricsLogger([JsonlSink(path)])
    logger.log(train_row(1))
    with file_size_limit(path.stat().st_size + 10):
        logger.log(train_row(2))
        logger.log(train_row(3))
    assert logger.active == ("jsonl",)
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2
    assert "2 rows wait in memory" in warnings[1]

    logger.log(train_row(4))
    logger.close()
    assert steps_in(path) == [1, 2, 3, 4]
    assert path.read_bytes().count(b"\n") == 4


def test_rows_lost_at_the_end_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = MetricsLogger([JsonlSink(path)])
    with file_size_limit(5):
        logger.log(train_row(1))
        logger.log(train_row(2))
        logger.close()
    assert "2 rows" in caplog.records[-1].message
    assert "are lost" in caplog.records[-1].message


def test_a_record_that_cannot_be_opened_stops_the_run_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        MetricsLogger([JsonlSink(tmp_path / "file" / "metrics.jsonl")])


def test_reading_a_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "metrics.jsonl")

"""The picture and the table at the end of a run."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from molgen_pretrain.metrics.curves import plot_curves, smooth
from molgen_pretrain.metrics.rows import Row
from molgen_pretrain.metrics.summary import summary_table, summary_text


def run_rows(steps: int) -> list[Row]:
    rows: list[Row] = []
    for step in range(10, steps + 1, 10):
        loss = 1.0 + 10 * math.exp(-step / 100)
        rows.append(
            {
                "kind": "train",
                "step": step,
                "loss": loss,
                "lr": 2e-4,
                "phase": "decay",
                "tokens": step * 1000,
                "tokens_per_second": 10.0 if step == 10 else 12_340.0,
                "memory_gib": 0.5 + step / 10_000,
            }
        )
        if step % 100 == 0:
            rows.append({"kind": "validation", "step": step, "loss": loss + 0.5})
    return rows


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


BROKEN: dict[str, list[Row]] = {
    "none": [],
    "one": run_rows(10),
    "few": run_rows(60),
    "many": run_rows(3000),
    "only NaN": [{"kind": "train", "step": step, "loss": math.nan, "lr": 1e-4} for step in (1, 2)],
    "some NaN": [*run_rows(50), {"kind": "train", "step": 60, "loss": math.inf, "lr": math.nan}],
    "negative": [{"kind": "train", "step": 1, "loss": -1.0}, {"kind": "train", "step": 2, "loss": 4.0}],
    "validation only": [{"kind": "validation", "step": 5, "loss": 2.0}],
    "text": [{"kind": "train", "step": 1, "loss": "high"}],
}


@pytest.mark.parametrize("case", BROKEN)
def test_picture_has_its_size_whatever_the_rows(tmp_path: Path, case: str) -> None:
    path = tmp_path / "curves.png"
    plot_curves(BROKEN[case], path, case, milestones=(20, 1000), unigram_entropy=3.0)
    assert png_size(path) == (1200, 700)


def test_picture_shows_the_rows(tmp_path: Path) -> None:
    plot_curves([], tmp_path / "empty.png", "run")
    plot_curves(run_rows(1000), tmp_path / "full.png", "run")
    assert (tmp_path / "full.png").stat().st_size > 1.5 * (tmp_path / "empty.png").stat().st_size


def test_smoothing_equals_the_mean_of_each_window() -> None:
    values = np.random.default_rng(0).normal(size=50)
    values[[7, 30]] = np.nan
    expected = [
        np.nan if math.isnan(value) else np.nanmean(values[max(i - min(i, 4), 0) : i + min(i, 4) + 1])
        for i, value in enumerate(values)
    ]
    np.testing.assert_allclose(smooth(values, 4), expected, rtol=1e-12)


def test_summary_names_losses_milestones_and_places() -> None:
    rows = run_rows(1000)
    paths = {"run directory": Path("/runs/" + "long-name/" * 20), "curves": Path("/runs/x/curves.png")}
    text = summary_text(summary_table(rows, [500, 1000, 2000], paths, 3.25, wall_seconds=131))

    final = 1.0 + 10 * math.exp(-10)
    assert f"{final:.4f} nats/token, {3.25 - final:.4f} below the unigram entropy" in text
    assert "12.3k tokens/s" in text  # the median: the slow first steps do not count
    assert "0:02:11" in text
    assert "0.60 GiB" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    at_500 = 1.0 + 10 * math.exp(-5)
    assert lines["500"] == ["500", "decay", "2.00e-04", f"{at_500:.4f}", f"{at_500 + 0.5:.4f}"]
    assert "1,000" in lines
    assert "2,000" not in lines  # not reached
    assert str(paths["run directory"]) in text
    assert "\x1b" not in text


def test_summary_says_when_the_model_is_worse_than_token_frequencies() -> None:
    rows: list[Row] = [{"kind": "train", "step": 1, "loss": 5.0}]
    assert "1.0000 ABOVE the unigram entropy" in summary_text(summary_table(rows, [], {}, 4.0))


def test_summary_of_a_run_without_rows() -> None:
    text = summary_text(summary_table([], [100], {"run directory": Path("/runs/x")}))
    assert "none" in text
    assert "/runs/x" in text
    assert "Milestones" not in text

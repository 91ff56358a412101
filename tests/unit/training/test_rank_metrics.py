"""metrics.save_for_all_ranks"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.metrics.rows import read_rows
from molgen_pretrain.parallel.distributed import World
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.training.build import build_metrics


@pytest.mark.parametrize("is_on", [True, False])
def test_other_ranks_write_their_rows_where_they_are_wanted(tmp_path: Path, is_on: bool) -> None:
    cfg = compose_run([f"metrics.save_for_all_ranks={is_on}"])
    world = World(rank=3, size=4, local_rank=3, device=torch.device("cpu"))
    for resume_step, step in ((0, 1), (0, 1), (1, 2)):
        metrics = build_metrics(
            cfg, RunDirectory(tmp_path), world, Console(file=io.StringIO()), resume_step=resume_step
        )
        metrics.log({"kind": "train", "step": step, "memory_gib": 0.5})
        metrics.close()
    assert [file.name for file in tmp_path.iterdir()] == (["metrics.rank3.jsonl"] if is_on else [])
    if is_on:
        assert [row["step"] for row in read_rows(tmp_path / "metrics.rank3.jsonl")] == [1, 2]

"""The fixture that runs ranks must itself fail readably and in time."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist


def add_up(value: int) -> float:
    total = torch.tensor(float(value + dist.get_rank()))
    dist.all_reduce(total)
    return total.item()


def one_rank_fails() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the cause to show")
    dist.barrier()


def one_rank_sleeps() -> None:
    if dist.get_rank() == 1:
        time.sleep(60)


def test_results_come_back_in_rank_order(run_distributed: Any) -> None:
    assert run_distributed(add_up, 2, 5) == [11.0, 11.0]


def test_a_failing_rank_shows_its_traceback(run_distributed: Any) -> None:
    with pytest.raises(pytest.fail.Exception, match="ValueError: the cause to show"):
        run_distributed(one_rank_fails, 2)


def test_a_hanging_rank_is_killed(run_distributed: Any) -> None:
    with pytest.raises(pytest.fail.Exception, match="timed out"):
        run_distributed(one_rank_sleeps, 2, timeout_seconds=3)

"""Reductions over ranks, and memory."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from molgen_pretrain.metrics.memory import memory_gib, peak_resident_bytes
from molgen_pretrain.metrics.reduce import reduce_max, reduce_sums


def test_without_a_process_group_values_come_back_unchanged() -> None:
    values = {"tokens": 2**40 + 1, "loss": torch.tensor(0.1, dtype=torch.float64), "count": torch.tensor(3)}
    expected = {"tokens": 2.0**40 + 1, "loss": 0.1, "count": 3.0}
    for reduce in (reduce_sums, reduce_max):
        reduced = reduce(values)
        assert reduced == expected
        assert list(reduced) == list(values)


def test_a_nan_is_not_lost_in_a_maximum() -> None:
    assert reduce_max({"max_loss": math.nan, "wait": -math.inf}) == {"max_loss": math.inf, "wait": -math.inf}
    assert math.isnan(reduce_sums({"loss": math.nan})["loss"])


def test_a_loss_that_carries_a_graph_can_be_reduced() -> None:
    loss = torch.tensor(2.0, requires_grad=True) * 3
    assert reduce_sums({"loss": loss}) == {"loss": 6.0}


def test_reduction_refuses_what_is_no_scalar() -> None:
    with pytest.raises(RuntimeError):
        reduce_sums({"loss": torch.ones(3)})


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc for comparison")
def test_memory_on_cpu_is_the_peak_of_the_resident_set() -> None:
    ballast = np.ones(200 * 2**20, dtype=np.uint8)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident_gib = pages * resource.getpagesize() / 2**30
    del ballast
    # The kernel counts pages per core and adds them up now and then: the last percent is not exact.
    assert memory_gib(torch.device("cpu")) >= 0.99 * resident_gib > 0.19


def test_memory_without_the_kernels_mark_comes_from_getrusage(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert peak_resident_bytes(tmp_path / "status") == pytest.approx(peak_resident_bytes(), rel=0.5)

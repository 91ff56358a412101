"""Reductions, rates on a fake clock, peaks by device name, memory."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from molgen_pretrain.metrics import Throughput, peak_flops
from molgen_pretrain.metrics.memory import memory_gib, peak_resident_bytes
from molgen_pretrain.metrics.reduce import reduce_max, reduce_sums


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


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


def test_rates_over_an_interval() -> None:
    clock = Clock()
    throughput = Throughput(devices=4, peak_flops=1e12, clock=clock)
    clock.now += 1000  # set-up
    throughput.start()
    for _ in range(5):
        with throughput.waiting():
            clock.now += 0.1
        clock.now += 1.9
        throughput.step()
    with throughput.paused():
        clock.now += 500  # validation
    rates = throughput.read(tokens=4000, flops=4000 * 6e9)
    assert rates == pytest.approx(
        {
            "tokens_per_second": 400.0,
            "tokens_per_second_per_device": 100.0,
            "step_seconds": 2.0,
            "data_wait_frac": 0.05,
            "mfu": 100.0 * 6e9 / 1e12,
        }
    )

    clock.now += 2.0
    throughput.step()
    again = throughput.read(tokens=100)
    assert (again["tokens_per_second"], again["data_wait_frac"]) == pytest.approx((50.0, 0.0))


def test_an_interval_without_steps_has_no_rates() -> None:
    with pytest.raises(ValueError, match="no step"):
        Throughput().read(tokens=0)


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756),
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H20", "bfloat16", 148),
        ("NVIDIA B200", torch.bfloat16, 2250),
        ("NVIDIA GB200", torch.bfloat16, 2500),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5),
        ("NVIDIA A10", torch.float16, 125),
        ("NVIDIA L40S", torch.bfloat16, 362),
        ("NVIDIA L40", torch.bfloat16, 181),
        ("NVIDIA L4", torch.bfloat16, 121),
        ("NVIDIA RTX A6000", torch.bfloat16, 154.8),
        ("NVIDIA RTX 6000 Ada Generation", torch.bfloat16, 364.2),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("Tesla V100-SXM2-32GB", torch.float16, 125),
        ("Tesla V100-PCIE-16GB", torch.float16, 112),
        ("AMD Instinct MI300X", torch.bfloat16, 1307.4),
    ],
)
def test_peak_by_device_name(name: str, dtype: torch.dtype | str, tflops: float) -> None:
    assert peak_flops(name, dtype) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cpu", torch.float32),
        ("Intel(R) Xeon(R) Platinum 8480+", torch.bfloat16),
        ("NVIDIA A10G", torch.bfloat16),  # not the A10: no guess by a common beginning
        ("Tesla V100-SXM2-32GB", torch.bfloat16),
        ("NVIDIA A100-SXM4-80GB", torch.int8),
    ],
)
def test_no_peak_where_none_is_known(name: str, dtype: torch.dtype) -> None:
    assert peak_flops(name, dtype) is None


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

"""Rates between log steps, MFU from the FLOPs that were needed, and the peaks of devices."""

from __future__ import annotations

import pytest
import torch

from molgen_pretrain.metrics.throughput import Throughput, peak_flops


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_mfu_is_the_work_over_what_all_devices_could_have_done() -> None:
    clock = Clock()
    throughput = Throughput(devices=4, peak_flops=1e12, clock=clock)
    for seconds, flops, mfu in ((10.0, 2e13, 0.5), (5.0, 2e12, 0.1)):  # each interval by itself
        clock.now += seconds
        throughput.step()
        assert throughput.read(tokens=1, flops=flops)["mfu"] == pytest.approx(mfu)


def test_validation_and_checkpoints_are_no_training_time() -> None:
    clock = Clock()
    throughput = Throughput(peak_flops=1e12, clock=clock)
    clock.now += 2
    throughput.step()
    with throughput.paused():
        clock.now += 100
    assert throughput.read(tokens=1, flops=1e12)["mfu"] == pytest.approx(0.5)


@pytest.mark.parametrize(("peak", "flops"), [(None, 1e12), (1e12, None)])
def test_there_is_no_mfu_where_work_or_limit_is_unknown(peak: float | None, flops: float | None) -> None:
    clock = Clock()
    throughput = Throughput(peak_flops=peak, clock=clock)
    clock.now += 1
    throughput.step()
    assert "mfu" not in throughput.read(10, flops)


# Dense, with float32 accumulation, from the sheets: H100 and H200 SXM 1,979; L4 242.5; L40S 733; HGX B200 4,500;
# RTX 4090 330.3; MI300X 2,614.9.
@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 1979),
        ("NVIDIA H100 80GB HBM3", 1979),
        ("NVIDIA L4", 242.5),
        ("NVIDIA L40S", 733),
        ("NVIDIA B200", 4500),
        ("NVIDIA GeForce RTX 4090", 330.3),
        ("AMD Instinct MI300X", 2614.9),
    ],
)
def test_peak_of_8_bit_floats(name: str, tflops: float) -> None:
    assert peak_flops(name, "float8") == pytest.approx(tflops * 1e12, rel=0.015)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-32GB", "NVIDIA GeForce RTX 3090", "cpu"])
def test_devices_without_8_bit_floats_have_no_such_peak(name: str) -> None:
    assert peak_flops(name, "float8") is None


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

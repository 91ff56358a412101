"""MFU from the FLOPs that were needed, and peaks of 8-bit floats."""

from __future__ import annotations

import pytest

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

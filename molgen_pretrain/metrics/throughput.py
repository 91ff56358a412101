"""How fast a run trains, and which part of the hardware's limit that is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Throughput:
    """Rates between two log steps, on an injectable clock (seconds).

    `devices` is the number of ranks, `peak_flops` one device's limit in FLOP/s; without it there is no `mfu`.

    The host clock is right for a GPU only if `read` follows a host-device sync, such as reading the loss.
    """

    def __init__(
        self,
        *,
        devices: int = 1,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._devices = devices
        self._peak_flops = peak_flops
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Begin a new interval now; call it right before the first step, so that set-up is not counted."""
        self._began = self._clock()
        self._steps = 0
        self._wait_seconds = 0.0
        self._pause_seconds = 0.0

    def step(self) -> None:
        """Count one finished optimizer update."""
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        began = self._clock()
        try:
            yield
        finally:
            self._wait_seconds += self._clock() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside (validation, a checkpoint, an export) is no training time and enters no rate."""
        began = self._clock()
        try:
            yield
        finally:
            self._pause_seconds += self._clock() - began

    def read(self, tokens: float, flops: float | None = None) -> dict[str, float]:
        """The rates since the last `start` or `read`, and begin anew.

        `tokens` are those trained since then on all ranks, `flops` what the model needed for them (forward and
        backward, `model.flops.step_flops`). Returns tokens_per_second (global), tokens_per_second_per_device,
        step_seconds, data_wait_frac (0 to 1, this rank's) and, where `flops` and the limit are known, mfu (0 to 1:
        those over the FLOPs that the devices could have done; Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
        Raises ValueError if no step was counted.
        """
        if self._steps == 0:
            raise ValueError("no step since the last reading")
        seconds = max(self._clock() - self._began - self._pause_seconds, 1e-9)
        rates = {
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_device": tokens / seconds / self._devices,
            "step_seconds": seconds / self._steps,
            "data_wait_frac": self._wait_seconds / seconds,
        }
        if flops is not None and self._peak_flops is not None:
            rates["mfu"] = flops / seconds / self._devices / self._peak_flops
        self.start()
        return rates


class _Peak(NamedTuple):
    words: frozenset[str]
    half_tflops: float
    float32_tflops: float
    bfloat16: bool = True
    float8: bool = False


def _peak(
    words: str, half_tflops: float, float32_tflops: float, *, bfloat16: bool = True, float8: bool = False
) -> _Peak:
    return _Peak(frozenset(words.split()), half_tflops, float32_tflops, bfloat16, float8)


# Dense peaks per device in TFLOP/s as the vendors' data sheets give them (NVIDIA product data sheets and
# architecture white papers, AMD Instinct data sheets): half precision on the matrix units with float32
# accumulation and without sparsity (sheets that print only the sparse figure are halved), and float32 without
# TF32. Products of 8-bit floats are twice as fast as those of halves wherever a device has them at all. The first
# entry whose words all occur in the device's name counts, so variants precede their family.
# An MI250X shows up as two devices of half a card each.
_PEAKS = (
    _peak("GB300", 2500, 80, float8=True),
    _peak("GB200", 2500, 80, float8=True),
    _peak("B300", 2250, 75, float8=True),
    _peak("B200", 2250, 75, float8=True),
    _peak("GH200", 989, 67, float8=True),
    _peak("H200 NVL", 835, 60, float8=True),
    _peak("H200", 989, 67, float8=True),
    _peak("H100 NVL", 835, 60, float8=True),
    _peak("H100 PCIE", 756, 51, float8=True),
    _peak("H100", 989, 67, float8=True),
    _peak("H800", 989, 67, float8=True),
    _peak("H20", 148, 44, float8=True),
    _peak("A100", 312, 19.5),
    _peak("A800", 312, 19.5),
    _peak("A40", 149.7, 37.4),
    _peak("A30", 165, 10.3),
    _peak("A10", 125, 31.2),
    _peak("A6000", 154.8, 38.7),
    _peak("6000 ADA", 364.2, 91.1, float8=True),
    _peak("L40S", 362, 91.6, float8=True),
    _peak("L40", 181, 90.5, float8=True),
    _peak("L4", 121, 30.3, float8=True),
    _peak("RTX 5090", 209.5, 104.8, float8=True),
    _peak("RTX 4090", 165.2, 82.6, float8=True),
    _peak("RTX 3090", 71, 35.6),
    _peak("V100 PCIE", 112, 14, bfloat16=False),
    _peak("V100", 125, 15.7, bfloat16=False),
    _peak("T4", 65, 8.1, bfloat16=False),
    _peak("MI325X", 1307.4, 163.4, float8=True),
    _peak("MI300X", 1307.4, 163.4, float8=True),
    _peak("MI250X", 191.5, 47.9),
)


def peak_flops(device_name: str, dtype: torch.dtype | str) -> float | None:
    """Dense peak of one device in FLOP/s; None where it is not known (any CPU, unlisted GPUs, no such unit).

    `device_name` is what `torch.cuda.get_device_name()` returns; `dtype` is bfloat16, float16, float32, or
    "float8" for matrix products of either 8-bit format with float32 accumulation.
    """
    words = frozenset(re.findall(r"[A-Z0-9]+", device_name.upper()))
    peak = next((entry for entry in _PEAKS if entry.words <= words), None)
    if peak is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name == "float32":
        return peak.float32_tflops * 1e12
    if name == "float8" and peak.float8:
        return 2 * peak.half_tflops * 1e12
    if name == "float16" or (name == "bfloat16" and peak.bfloat16):
        return peak.half_tflops * 1e12
    return None

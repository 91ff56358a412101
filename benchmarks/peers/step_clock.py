"""When steps end, for trainers of any make; imports nothing but torch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch


class StepClock:
    """Call `tick` after each step: every `every`-th one is waited for, so that its time is the device's."""

    def __init__(self, device: str, every: int) -> None:
        self._device = torch.device(device)
        self._every = every
        self._steps = 0
        self._times: list[float] = []
        self._memory_before = peak_gib(self._device)

    def tick(self) -> None:
        self._steps += 1
        if self._steps % self._every == 0:
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            self._times.append(time.perf_counter())

    def result(self, tokens: list[int]) -> dict[str, Any]:
        """Tokens per second of each interval but the first, whose begin is not known, and memory in GiB.

        `tokens`: those of each step that count.
        """
        per_interval = [sum(tokens[i : i + self._every]) for i in range(0, len(tokens), self._every)]
        seconds = [end - begin for begin, end in zip(self._times, self._times[1:], strict=False)]
        return {
            "tokens_per_second": [n / s for n, s in zip(per_interval[1:], seconds, strict=False)],
            "memory_gib": peak_gib(self._device),
            "imports_gib": self._memory_before,
        }


def peak_gib(device: torch.device) -> float:
    """Most memory in use so far: allocated tensors on a CUDA device, else the resident set (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 2**20


def print_result(result: dict[str, Any]) -> None:
    """As the last line of the process' output, which `harness.peer_process` reads."""
    print(json.dumps(result), flush=True)

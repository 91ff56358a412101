"""What the device can do at most, measured: dense matmuls by dtype in TFLOP/s, and a copy in GB/s (read and written).

`device_limits.py SPEC`, a JSON object: {"device": "cuda", "size": 8192, "copy_mib": 2048}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

ROUNDS, CALLS = 7, 5


def main() -> None:
    spec = json.loads(sys.argv[1])
    device, size = torch.device(spec["device"]), spec["size"]
    found = {"bf16 matmul": matmul(device, size) / 1e12}
    # The first GPUs that multiply 8-bit floats.
    if device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        found["fp8 matmul"] = float8_matmul(device, size) / 1e12
    found["copy"] = copy(device, spec["copy_mib"] * 2**20) / 1e9
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    print(json.dumps({"name": name, "limits": found}))


def matmul(device: torch.device, size: int) -> float:
    """FLOP/s in bfloat16, on random data: zeros multiply faster."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def float8_matmul(device: torch.device, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    product = lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: E731
    return 2 * size**3 / seconds(product, device)


def copy(device: torch.device, size: int) -> float:
    """Bytes per second, those read and those written."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call: median over rounds of several, the first round apart."""
    found = []
    for _ in range(ROUNDS + 1):
        wait(device)
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        wait(device)
        found.append((time.perf_counter() - began) / CALLS)
    return median(found[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

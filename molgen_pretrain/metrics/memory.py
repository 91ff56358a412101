"""Peak memory of this process on the device that trains."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30


def memory_gib(device: torch.device) -> float:
    """Most memory in use so far, in GiB: allocated tensors on a CUDA device, else the resident set."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / GIB
    return peak_resident_bytes() / GIB


def peak_resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Largest resident set of this process so far; `status` is Linux' file of that name."""
    # The kernel's own mark first: getrusage also counts the parent's size at the moment of the fork.
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB

"""The GPUs that this process may use, as CUDA counts them, without asking CUDA."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from pathlib import Path

DEVICES = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """Their names for CUDA_VISIBLE_DEVICES; numbers, unless that variable has others."""
    listed = os.environ.get(DEVICES)
    if listed is not None:
        # CUDA stops at the first entry that is none.
        return list(takewhile(lambda name: name not in ("", "-1"), (name.strip() for name in listed.split(","))))
    found = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(index) for index in range(len(found))]

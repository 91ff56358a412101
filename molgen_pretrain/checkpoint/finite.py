"""Are all numbers of a buffer finite? Told from their bits, at the speed of memory and without a copy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# What the bits of the smallest positive non-finite number are: an infinity, or the NaN of formats without one.
# Everything from there up is non-finite too; the same with the sign bit set for the negative ones.
_FIRST_NON_FINITE = {
    torch.float64: 0x7FF0_0000_0000_0000,
    torch.float32: 0x7F80_0000,
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float8_e5m2: 0x7C,
    torch.float8_e4m3fn: 0x7F,
}


def all_finite(values: Tensor) -> bool:
    """Whether a contiguous CPU tensor holds neither NaN nor infinity. True for integers and empty ones.

    numpy rather than torch: it stays in this thread, where torch would start a pool of its own beside the
    training's.
    """
    first = _FIRST_NON_FINITE.get(values.dtype)
    if first is None or not values.numel():
        return True
    width = values.dtype.itemsize
    bits = values.reshape(-1).view(torch.uint8).numpy().view(f"u{width}")
    sign = 1 << (8 * width - 1)
    return bool(bits.view(f"i{width}").max() < first and bits.max() < np.array(first | sign, bits.dtype))

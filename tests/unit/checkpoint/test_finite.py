from __future__ import annotations

import pytest
import torch

from molgen_pretrain.checkpoint.finite import all_finite

FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
]


@pytest.mark.parametrize("dtype", FLOATS)
def test_agrees_with_torch_on_every_kind_of_number(dtype: torch.dtype) -> None:
    """All bit patterns of the narrow formats; of the wide ones all signs and exponents, with two fractions each."""
    width = dtype.itemsize
    if width <= 2:
        bits = torch.arange(2 ** (8 * width)).to(torch.uint8 if width == 1 else torch.uint16)
    else:
        upper = torch.arange(2**12 if width == 8 else 2**9)
        bits = torch.cat([upper, upper]) << (52 if width == 8 else 23)
        bits[: len(upper)] |= 1
        bits = bits.to(torch.int64 if width == 8 else torch.uint32)
    values = bits.view(dtype)
    expected = values.double().isfinite()
    assert 0 < expected.sum() < len(values)
    assert [all_finite(value) for value in values.split(1)] == expected.tolist()
    assert all_finite(values[expected])
    for index in (~expected).nonzero()[:4].flatten().tolist():
        assert not all_finite(torch.cat([values[expected], values[index : index + 1], values[expected]]))


def test_what_cannot_be_infinite_is_finite() -> None:
    assert all_finite(torch.tensor([-1, 2**62]))
    assert all_finite(torch.empty(0, 3))
    assert not all_finite(torch.tensor(float("nan")))

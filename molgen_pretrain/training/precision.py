"""Compute dtype: what was chosen, or what this machine multiplies fastest."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from molgen_pretrain.config.choices import Dtype


def compute_dtype(chosen: Dtype, device: torch.device) -> torch.dtype:
    """The dtype of forward and backward. `auto` is bfloat16 where the hardware has it, float32 elsewhere.

    On a CPU without such instructions bfloat16 is emulated and slower than float32; with them it trained the
    sample model 1.45 times as fast (AVX512-BF16, two cores).
    """
    if chosen is not Dtype.auto:
        return torch.bfloat16 if chosen is Dtype.bfloat16 else torch.float32
    return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


def autocast_factory(
    dtype: torch.dtype, device: torch.device, *, sharded: bool
) -> Callable[[], AbstractContextManager[object]]:
    """What to wrap a forward in: on a GPU the mixed-precision policy of a sharded model has the weights in
    `dtype` already, everywhere else autocast casts them."""
    if dtype is torch.float32 or (sharded and device.type == "cuda"):
        return nullcontext
    return partial(torch.autocast, device.type, dtype=dtype)


def make_deterministic() -> None:
    """Let torch take only algorithms that give the same bits each time. To be called before CUDA is used.

    On a CPU they do so anyway. Raises later, at the operation, where torch has no such algorithm.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before it could tell
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16"))

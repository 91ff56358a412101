"""A copy of a rank's tensors in host memory, in buffers that serve one save after the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from molgen_pretrain.errors import UserError


class HostCopy:
    """Buffers as large as what this rank writes. Pinned for tensors on a GPU, so that copying is fast."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Have a buffer for each of these local tensors; those of the last time are used again.

        Raises:
            UserError: there is not enough host memory.
        """
        try:
            self._buffers = {name: self._buffer(name, tensor) for name, tensor in tensors.items()}
        except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError
            size = sum(tensor.nbytes for tensor in tensors.values()) / 2**30
            raise UserError(
                f"checkpoint.async_mode=async: no host memory for a copy of this rank's {size:.1f} GiB ({error}); "
                "use checkpoint.async_mode=sync or more ranks"
            ) from error

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy reserved tensors of any device; complete on return, so the originals may change at once.

        The result is overwritten by the next call.
        """
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor, non_blocking=True)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return dict(self._buffers)

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        known = self._buffers.get(name)
        if known is not None and (known.shape, known.dtype) == (tensor.shape, tensor.dtype):
            return known
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)

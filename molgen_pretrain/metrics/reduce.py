"""Numbers over all ranks, and on their way to the host: one collective for many, and one copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def reduce_sums(values: Mapping[str, float | Tensor], *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Sum of each named scalar over all ranks, in float64. Waits for the device.

    Every rank passes the same names, in the same order. Tensors (zero-dimensional) stay on `device` until the one
    copy to the host at the end. Without an initialised process group the values come back as they are.
    """
    return dict(zip(values, sum_over_ranks(_pack(values, device)).tolist(), strict=True))


def reduce_max(values: Mapping[str, float | Tensor], *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Maximum of each named scalar over all ranks; otherwise as `reduce_sums`. A NaN on any rank gives infinity."""
    return dict(zip(values, max_over_ranks(_pack(values, device)).tolist(), strict=True))


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values`, in place, summed over all ranks where there is a process group. Does not wait for the device."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def max_over_ranks(values: Tensor) -> Tensor:
    """The highest of each of `values` on any rank. Does not wait for the device.

    A NaN on any rank gives infinity: backends disagree on whether a maximum keeps NaN, and a broken rank
    must not vanish behind the healthy ones.
    """
    values = torch.nan_to_num(values, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def send_to_device(values: Sequence[float], device: torch.device | str) -> Tensor:
    """Host numbers as one float64 vector [len(values)] on `device`, which the host does not wait for."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.tensor(values, dtype=torch.float64, pin_memory=on_gpu).to(device, non_blocking=True)


class Readout:
    """Vectors on their way from the device to the host, in one copy that is queued behind what makes them."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        """`vectors`: of any length, on one device; the values travel as float64."""
        self._sizes = {name: vector.numel() for name, vector in vectors.items()}
        packed = torch.cat([vector.detach().reshape(-1).double() for vector in vectors.values()])
        self._host, self._arrived = packed, None
        if packed.device.type == "cuda":
            self._host = torch.empty_like(packed, device="cpu", pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            # Blocking: the waiting thread sleeps, and leaves its core to the workers that make batches.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def wait(self) -> dict[str, list[float]]:
        """The values of each vector, once the device has come that far."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = self._host.split(list(self._sizes.values()))
        return {name: part.tolist() for name, part in zip(self._sizes, parts, strict=True)}


def _pack(values: Mapping[str, float | Tensor], device: torch.device | str) -> Tensor:
    """One float64 vector [len(values)] on `device`."""
    hosted = send_to_device([0.0 if isinstance(value, Tensor) else value for value in values.values()], device)
    scalars = [
        value.detach().double().reshape(()) if isinstance(value, Tensor) else hosted[index]
        for index, value in enumerate(values.values())
    ]
    return torch.stack(scalars) if scalars else hosted

"""A log step's numbers over all ranks: one collective for everything summed, one for everything maximised."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist


def reduce_sums(
    values: Mapping[str, float | torch.Tensor],
    *,
    device: torch.device | str = "cpu",
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Sum of each named scalar over the ranks of `group` (None: all ranks), in float64.

    Every rank passes the same names. Tensors (zero-dimensional) stay on `device` until the one copy to the
    host at the end. Without an initialised process group the values come back as they are.
    """
    packed = _pack(values, device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(packed, op=dist.ReduceOp.SUM, group=group)
    return _unpack(values, packed)


def reduce_max(
    values: Mapping[str, float | torch.Tensor],
    *,
    device: torch.device | str = "cpu",
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Maximum of each named scalar over the ranks of `group`; otherwise as `reduce_sums`.

    A NaN on any rank gives infinity: backends disagree on whether a maximum keeps NaN, and a broken rank
    must not vanish behind the healthy ones.
    """
    packed = torch.nan_to_num(_pack(values, device), nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(packed, op=dist.ReduceOp.MAX, group=group)
    return _unpack(values, packed)


def _pack(values: Mapping[str, float | torch.Tensor], device: torch.device | str) -> torch.Tensor:
    """The values in order of their names as one float64 vector [len(values)] on `device`."""
    items = [values[name] for name in sorted(values)]
    host = [0.0 if isinstance(item, torch.Tensor) else float(item) for item in items]
    packed = torch.tensor(host, dtype=torch.float64, device=device)
    for index, item in enumerate(items):
        if isinstance(item, torch.Tensor):
            packed[index] = item.detach()
    return packed


def _unpack(values: Mapping[str, float | torch.Tensor], packed: torch.Tensor) -> dict[str, float]:
    reduced = dict(zip(sorted(values), packed.tolist(), strict=True))
    return {name: reduced[name] for name in values}

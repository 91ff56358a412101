"""Updates that the device leaves out by itself, where the host learns too late that they would do harm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam, AdamW


class UpdateGuard:
    """A flag on the device that keeps an optimizer from moving weights and moments.

    It goes up with the first loss or gradient norm that is not finite, and stays up until `clear`: the updates
    that were queued behind the harmful one, before the host knew of it, are left out too. torch's fused kernels
    of Adam and AdamW look at it under the name that mixed precision's gradient scaler has given it, `found_inf`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._is_up = torch.zeros((), device=device)  # float32, 0 or 1, as the kernels want it
        optimizer.found_inf = self._is_up  # type: ignore[attr-defined]

    @staticmethod
    def fits(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
        """Whether the optimizer is one that heeds the flag, with all parameters on the flag's device.

        The fused SGD does not: left out in the first step, it leaves momentum without a value.
        """
        return isinstance(optimizer, (Adam, AdamW)) and all(
            group["fused"] and all(parameter.device.type == device.type for parameter in group["params"])
            for group in optimizer.param_groups
        )

    def watch(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Look at the scalars of an update before it runs; the same on every rank, whose updates belong together."""
        self._is_up.logical_or_(~(torch.isfinite(loss) & torch.isfinite(grad_norm)))

    def clear(self) -> None:
        """Let updates through again."""
        self._is_up.zero_()

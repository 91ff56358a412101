"""Parameter groups: which weights share a scale of learning rate and weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with lr = schedule.lr * lr_scale and weight decay = schedule.weight_decay * wd_scale."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    wd_scale: float = 1.0

    def as_torch(self) -> dict[str, Any]:
        """The group in the form that torch optimizers take; they carry the extra keys along."""
        return {
            "params": list(self.parameters),
            "name": self.name,
            "lr_scale": self.lr_scale,
            "wd_scale": self.wd_scale,
        }


def split_param_groups(model: nn.Module, *, decay_norms_and_biases: bool) -> list[ParamGroup]:
    """One group, or two where norms and biases (all one-dimensional parameters) take no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if decay_norms_and_biases:
        return [ParamGroup("all", tuple(parameters))]
    matrices = tuple(p for p in parameters if p.ndim > 1)
    vectors = tuple(p for p in parameters if p.ndim <= 1)
    return [ParamGroup("matrices", matrices), ParamGroup("norms_and_biases", vectors, wd_scale=0.0)]

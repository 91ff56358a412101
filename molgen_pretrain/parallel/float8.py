"""Linear layers that multiply in float8, by torchao: half the bits of bfloat16, at twice its peak."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

import torch
from torch import nn

from molgen_pretrain.errors import UserError
from molgen_pretrain.parallel.layout import Layout

Float8 = Literal["none", "tensorwise", "rowwise"]

_CAPABILITY = (8, 9)  # Ada; Hopper is 9.0
_MULTIPLE = 16  # of both sizes of a weight, for the kernels


def convert_to_float8(blocks: Iterable[nn.Module], recipe: Float8, layout: Layout) -> None:
    """Replace the linear layers of blocks, in place, on meta or real weights, before they are compiled or sharded.

    Inputs, weights and gradients are scaled to float8 for each product, by one factor per tensor (fastest) or one
    per row (closer to bfloat16). Weights are the same parameters under the same names, in their own dtype; a layer
    with a size that is not a multiple of 16 stays as it is. Raises UserError without torchao or such a GPU.
    """
    require_float8(recipe, layout)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name(recipe)
    for block in blocks:
        convert_to_float8_training(block, module_filter_fn=_fits, config=config)


def require_float8(recipe: Float8, layout: Layout) -> None:
    """Raises UserError where `convert_to_float8` would: without torchao, or a GPU with float8 products."""
    device = layout.device
    if device.type != "cuda":
        raise UserError(f"training.float8={recipe}: a {device.type} has no float8 products; legal here: none")
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"training.float8={recipe}: {name} (compute capability {capability[0]}.{capability[1]}) has no float8 "
            f"products, which begin with {_CAPABILITY[0]}.{_CAPABILITY[1]}; legal here: none"
        )
    if layout.tensor_mesh is not None:
        raise UserError(f"training.float8={recipe}: not with parallelism.tensor_parallel_degree > 1; legal here: none")
    if find_spec("torchao") is None:
        raise UserError(
            f"training.float8={recipe}: needs torchao; pip install 'molgen-pretrain[float8]', or training.float8=none"
        )


def _fits(module: nn.Module, _name: str) -> bool:
    return isinstance(module, nn.Linear) and not any(size % _MULTIPLE for size in module.weight.shape)

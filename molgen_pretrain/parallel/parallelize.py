"""How a model spreads over ranks: the one place where it is wrapped, in the one order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from molgen_pretrain.parallel.activation_checkpointing import ActivationCheckpointing, checkpoint_activations
from molgen_pretrain.parallel.float8 import Float8, convert_to_float8
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.parallel.tensor_parallel import apply_tensor_parallel


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """What is done to a model besides spreading it.

    `compute_dtype` is what FSDP2 casts weights to for forward and backward; weights themselves and the sums of
    gradients are float32. `reshard_after_forward`: whether weights that were gathered for the forward are given
    back before the backward (default: the blocks', not the root's, which is needed again at once). `prefetch`: how
    many blocks' weights are asked for ahead of the block that runs; 0 leaves the order to FSDP2, which asks when a
    forward comes to a block, and one ahead in the backward. `cpu_offload` keeps weights, gradients and optimizer
    state on the host. `float8`: how the blocks' linear layers are scaled to float8.
    """

    compute_dtype: torch.dtype = torch.float32
    reshard_after_forward: Literal["default", "always", "never"] = "default"
    activation_checkpointing: ActivationCheckpointing = "none"
    compile: bool = False
    prefetch: int = 0
    cpu_offload: bool = False
    float8: Float8 = "none"


def parallelize(
    model: nn.Module, blocks: Iterable[nn.Module], layout: Layout, wrapping: Wrapping, *, fill: Callable[..., None]
) -> nn.Module:
    """Wrap a meta model and its blocks in place, let `fill(weights_device=...)` give it weights, and return what
    training calls.

    The order, each step on what the one before left:

    1. Linear layers of the blocks become those that multiply in float8, or
       tensor parallelism replaces weights by their parts and hooks communication to linear layers and norms.
    2. Activation checkpointing wraps each block's forward, so what it computes again includes the former.
    3. Compilation takes the wrapped forward: one graph for all blocks, which decides itself what to keep.
    4. FSDP2 takes each block as a unit and the rest as the root; its hooks gather and scatter outside of the graph.
    5. Weights come into being, on each rank its own parts only.
    6. DDP, for whole copies, is put around the finished model; everything else is the model itself.

    No step renames a parameter. Whoever wants names (optimizer, checkpoint, export) uses `model`. Raises UserError
    where float8 is not to be had.
    """
    blocks = list(blocks)
    if wrapping.float8 != "none":
        convert_to_float8(blocks, wrapping.float8, layout)
    if layout.tensor_mesh is not None:
        apply_tensor_parallel(model, blocks, layout.tensor_mesh)
    for block in blocks:
        checkpoint_activations(block, wrapping.activation_checkpointing)
        if wrapping.compile:
            block.forward = torch.compile(block.forward, fullgraph=True)
    if layout.fsdp_mesh is not None:
        _shard(model, blocks, layout, wrapping)
    fill(weights_device=torch.device("cpu") if wrapping.cpu_offload else layout.device)
    if layout.fsdp_mesh is None and layout.degrees.replicate > 1:
        return _replicate(model, layout.device)
    return model


@contextmanager
def gradient_sync(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch: ranks add up their gradients with the last only.

    `model` is what `parallelize` returned. FSDP2 and DDP divide the sum by the data-parallel ranks.
    """
    if isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        model.set_is_last_backward(is_last)
        # Embedding and head are whole all through forward and backward: until the next micro-batch costs no memory.
        model.set_reshard_after_backward(is_last, recurse=False)
    yield


def _shard(model: nn.Module, blocks: Sequence[nn.Module], layout: Layout, wrapping: Wrapping) -> None:
    """Embedding, final norm and head stay together in the root group: a tied weight may belong to only one."""
    assert layout.fsdp_mesh is not None
    casts = wrapping.compute_dtype is not torch.float32
    precision = MixedPrecisionPolicy(param_dtype=wrapping.compute_dtype if casts else None, reduce_dtype=torch.float32)
    offload = OffloadPolicy()
    if wrapping.cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=layout.device.type == "cuda")
    shard = partial(fully_shard, mesh=layout.fsdp_mesh, mp_policy=precision, offload_policy=offload)
    for block in blocks:
        shard(block, reshard_after_forward=wrapping.reshard_after_forward != "never")
    shard(model, reshard_after_forward=wrapping.reshard_after_forward == "always")
    if wrapping.prefetch > 0:
        _prefetch([group for group in (model, *blocks) if isinstance(group, FSDPModule)], wrapping.prefetch)


def _prefetch(groups: list[FSDPModule], ahead: int) -> None:
    """`groups` in the order of a forward. The root comes first in the backward too: it has the head."""
    backward = [groups[0], *groups[:0:-1]]
    for number in range(len(groups)):
        following = slice(number + 1, number + 1 + ahead)
        groups[number].set_modules_to_forward_prefetch(groups[following])
        backward[number].set_modules_to_backward_prefetch(backward[following])


def _replicate(model: nn.Module, device: torch.device) -> nn.Module:
    # The rotary frequencies, the only buffers, never change. torch 2.13 renamed the switch.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    switches: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        init_sync=False,  # every rank has filled in the same weights
        gradient_as_bucket_view=True,
        **switches,
    )

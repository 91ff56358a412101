"""Tensor parallelism of a decoder: every rank has some heads, some of the feed-forward, some of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)


def apply_tensor_parallel(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Cut a decoder in the names of Hugging Face's Qwen3 along a one-axis mesh, in place, on meta or real weights.

    Column-wise q, k, v, gate and up, row-wise o and down (Shoeybi et al. 2019, arXiv 1909.08053); embedding and
    head by rows of the vocabulary. Hidden states, norms and logits are whole on every rank. Tied weights stay
    tied. `tensor_degree_problems` has checked that the sizes divide.
    """
    tied = _tied_names(model)
    for block in blocks:
        parallelize_module(block, mesh, _block_plan())
        for name in ("input_layernorm", "post_attention_layernorm"):
            _replicate(block.get_submodule(name), mesh)
    parallelize_module(
        model,
        mesh,
        {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(output_layouts=Replicate()),
        },
    )
    # Compiled blocks (torch 2.13) give a tensor that still waits for its sum, as the embedding's does, a gradient
    # of zero, and say nothing; a copy has waited.
    model.get_submodule("model.embed_tokens").register_forward_hook(lambda _, __, output: output.clone())
    _replicate(model.get_submodule("model.norm"), mesh)
    for first, other in tied:
        owner, _, name = other.rpartition(".")
        setattr(model.get_submodule(owner), name, model.get_parameter(first))


def _block_plan() -> dict[str, ParallelStyle]:
    # These norms see the heads of this rank: their weight's gradient is summed over ranks, which a plain copy
    # of the weight would silently miss. [batch, seq, heads, head_dim]
    head_norm = SequenceParallel(sequence_dim=2, use_local_output=True)
    # Made DTensors once for all linear layers that take them, hidden states get their gradient in one sum, not in
    # one for each layer.
    attention_input = PrepareModuleInput(
        input_kwarg_layouts={"hidden_states": Replicate()}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
    )
    mlp_input = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
    return {
        "self_attn": attention_input,
        "mlp": mlp_input,
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.q_norm": head_norm,
        "self_attn.k_norm": head_norm,
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }


def _replicate(module: nn.Module, mesh: DeviceMesh) -> None:
    """A module that every rank runs on the same input. Its weights are DTensors, for one mesh under all of them."""

    def enter(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> tuple[Tensor, ...]:
        return tuple(DTensor.from_local(x, mesh, (Replicate(),), run_check=False) for x in inputs)

    def leave(_: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        return output.to_local()

    distribute_module(module, mesh, input_fn=enter, output_fn=leave)  # type: ignore[arg-type]


def _tied_names(model: nn.Module) -> list[tuple[str, str]]:
    """(first name, other name) of every parameter that has two."""
    first_names: dict[int, str] = {}
    pairs = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(parameter), name)
        if first != name:
            pairs.append((first, name))
    return pairs

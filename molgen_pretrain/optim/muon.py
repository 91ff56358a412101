"""Muon for hidden matrices and AdamW for the rest, as one optimizer, on whole or sharded matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer to everyone else: `muon`'s groups come first, then `adamw`'s.

    Groups and state are the same objects inside and outside: a schedule or a checkpoint that writes to them
    reaches the two torch optimizers that do the work.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], defaults={})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """load_state_dict comes here with new groups and a new state."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups = self.param_groups[first:last]
            part.state = self.state
            first = last


class WholeMatrixMuon(torch.optim.Muon):
    """torch's Muon, with its own step for sharded matrices, which computes bit for bit what one device does.

    torch's step is right on DTensors, but works on the shards: a dozen collectives for each matrix, with sums in
    bfloat16 in another order than on one device. Here ranks exchange matrices in bfloat16, which the iteration
    runs in anyway, and orthogonalise whole ones. Where all are sharded over one axis of a mesh (FSDP2, HSDP, tensor
    parallelism alone), every rank takes one of as many as there are ranks and sends the slices back: two
    collectives for a round, the work divided. Over two axes (FSDP2 with tensor parallelism) every rank gathers
    and orthogonalises every matrix.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        axes = {_sharded_axes(p) for group in self.param_groups for p in group["params"]}
        if () in axes:
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        share_work = len(axes) == 1 and len(next(iter(axes))) == 1
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            # Ranks wait for each other in every round: matrices of one size fill a round.
            matrices.sort(key=lambda p: p.numel(), reverse=True)
            for members in _rounds(matrices) if share_work else ([p] for p in matrices):
                self._step_members(members, group, exchange=apply_to_whole if share_work else apply_to_gathered)
        return loss

    def _step_members(
        self, matrices: Sequence[DTensor], group: dict[str, Any], *, exchange: Callable[..., list[Tensor]]
    ) -> None:
        orthogonal = partial(
            orthogonalize, coefficients=group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"]
        )
        parts = exchange(orthogonal, matrices, [self._direction(p, group) for p in matrices])
        for parameter, part in zip(matrices, parts, strict=True):
            local = parameter.to_local()
            local.mul_(1 - group["lr"] * group["weight_decay"])
            local.add_(part, alpha=-group["lr"] * shape_factor(parameter.shape, group["adjust_lr_fn"]))

    def _direction(self, parameter: DTensor, group: dict[str, Any]) -> Tensor:
        """Momentum, element by element on this rank's shard; bfloat16."""
        assert isinstance(parameter.grad, DTensor)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        gradient, momentum = parameter.grad.to_local(), state["momentum_buffer"].to_local()
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        return direction.bfloat16()


def apply_to_whole(
    function: Callable[[Tensor], Tensor], layouts: Sequence[DTensor], shards: Sequence[Tensor]
) -> list[Tensor]:
    """This rank's slices of function(matrix), for matrices of which every rank has a shard. Collective.

    There are at most as many matrices as ranks along the sharded axis: rank i is handed the i-th one whole.

    Args:
        layouts: tensors that are sharded as the matrices are, over one axis of one mesh.
        shards: this rank's shard of each matrix, all of one dtype.
    """
    mesh, (axis,) = layouts[0].device_mesh, _sharded_axes(layouts[0])
    ranks, rank, size = mesh.get_group(axis), mesh.get_local_rank(axis), mesh.size(axis)
    flat = torch.cat([shard.reshape(-1) for shard in shards])
    sizes = [shard.numel() for shard in shards] + [0] * (size - len(shards))
    if rank < len(layouts):
        dim = layouts[rank].placements[axis].dim  # type: ignore[attr-defined]
        shapes = shard_shapes(layouts[rank].shape, dim, size)
        my_sizes = [math.prod(shape) for shape in shapes]
    else:
        my_sizes = [0] * size
    mine = flat.new_empty(sum(my_sizes))
    dist.all_to_all_single(mine, flat, my_sizes, sizes, group=ranks)
    if rank < len(layouts):
        pieces = [piece.view(shape) for piece, shape in zip(mine.split(my_sizes), shapes, strict=True)]
        result = function(torch.cat(pieces, dim))
        mine = torch.cat([part.reshape(-1) for part in result.split([shape[dim] for shape in shapes], dim)])
    dist.all_to_all_single(flat, mine, sizes, my_sizes, group=ranks)
    return [part.view(shard.shape) for part, shard in zip(flat.split(sizes[: len(shards)]), shards, strict=True)]


def apply_to_gathered(
    function: Callable[[Tensor], Tensor], layouts: Sequence[DTensor], shards: Sequence[Tensor]
) -> list[Tensor]:
    """As `apply_to_whole`, for tensors sharded over any axes: every rank has every matrix whole. Collective."""
    parts = []
    for layout, shard in zip(layouts, shards, strict=True):
        matrix = DTensor.from_local(
            shard, layout.device_mesh, layout.placements, run_check=False, shape=layout.shape, stride=layout.stride()
        )
        (chunk,) = layout.__create_chunk_list__()
        box = zip(chunk.offsets, chunk.sizes, strict=True)
        result = function(matrix.full_tensor())
        parts.append(result[tuple(slice(offset, offset + size) for offset, size in box)])
    return parts


def orthogonalize(matrix: Tensor, *, coefficients: Sequence[float], steps: int, eps: float) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly; [m, n] in, [m, n] bfloat16 out.

    Newton-Schulz: X <- a X + (b G + c G^2) X with G = X X^T, `steps` times, from the matrix divided by its
    Frobenius norm. With Muon's coefficients the singular values end between about 0.7 and 1.2. Source: Jordan et
    al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)  # the Gram matrix of the shorter side costs less
    x = matrix.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def shape_factor(shape: Sequence[int], rule: str | None) -> float:
    """What the learning rate of a [rows, columns] matrix is multiplied with, in torch.optim.Muon's names.

    original (None): sqrt(max(1, rows / columns)), Jordan et al. 2024. match_rms_adamw: 0.2 * sqrt(max(rows,
    columns)), which gives updates the size of AdamW's, so that its learning rate serves both (Liu et al. 2025,
    arXiv 2502.16982, section 2.2).
    """
    rows, columns = shape
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def _sharded_axes(parameter: Tensor) -> tuple[int, ...]:
    """The axes of its mesh that a parameter is sharded over; those of one rank count where there is no other."""
    if not isinstance(parameter, DTensor):
        return ()
    sharded = [axis for axis, placement in enumerate(parameter.placements) if not placement.is_replicate()]
    return tuple(axis for axis in sharded if parameter.device_mesh.size(axis) > 1) or tuple(sharded[:1])


def shard_shapes(shape: Sequence[int], dim: int, ranks: int) -> list[list[int]]:
    """What each rank holds of a tensor sharded along `dim`: equal parts, rounded up, and what is left."""
    part = -(-shape[dim] // ranks)
    lengths = [max(0, min(part, shape[dim] - rank * part)) for rank in range(ranks)]
    return [[*shape[:dim], length, *shape[dim + 1 :]] for length in lengths]


def _rounds(matrices: Sequence[DTensor]) -> Iterator[Sequence[DTensor]]:
    """As many at a time as ranks share the work."""
    if not matrices:
        return
    (axis,) = _sharded_axes(matrices[0])
    size = matrices[0].device_mesh.size(axis)
    for first in range(0, len(matrices), size):
        yield matrices[first : first + size]

"""Which box of which tensor each rank holds, and who writes it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard


@dataclass(frozen=True, order=True)
class Box:
    """An axis-aligned part of a tensor, in elements. A 0-dim tensor is the box with no dims."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it holds; 1 for a 0-dim tensor."""
        return math.prod(self.sizes)

    def overlap(self, other: Box) -> Box:
        """The part common to both, possibly empty."""
        starts = tuple(map(max, self.offsets, other.offsets))
        ends = tuple(map(min, self._ends, other._ends))
        return Box(starts, tuple(max(0, end - start) for start, end in zip(starts, ends, strict=True)))

    def inside(self, outer: Box) -> tuple[slice, ...]:
        """Slices that select this box from a tensor which holds `outer`."""
        starts = [offset - base for offset, base in zip(self.offsets, outer.offsets, strict=True)]
        return tuple(slice(start, start + size) for start, size in zip(starts, self.sizes, strict=True))

    @property
    def _ends(self) -> tuple[int, ...]:
        return tuple(offset + size for offset, size in zip(self.offsets, self.sizes, strict=True))


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a tensor, without the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint: which rank's file holds which box. The boxes tile the tensor exactly."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[tuple[int, Box], ...]


def local_part(tensor: Tensor) -> tuple[Box, Tensor]:
    """The box of the global tensor that this rank holds, and the local data sharing its memory.

    A plain tensor is held whole. DTensors may be replicated and sharded over any mesh, FSDP2 over tensor
    parallelism on the same dim included.

    Raises:
        ValueError: the local data does not have the shape that its placements say.
    """
    if not isinstance(tensor, DTensor):
        data = tensor.detach()
        return Box((0,) * data.ndim, tuple(data.shape)), data
    local = tensor.to_local().detach()
    box = box_of(tuple(tensor.shape), tensor.device_mesh.shape, tensor.placements, tensor.device_mesh.get_coordinate())
    if tuple(local.shape) != box.sizes and (local.numel() or box.elements):
        raise ValueError(f"local shape {tuple(local.shape)} is not {box.sizes} of {tensor.placements}")
    return box, local


def box_of(
    shape: tuple[int, ...],
    mesh_shape: Sequence[int],
    placements: Sequence[Placement],
    coordinate: Sequence[int] | None,
) -> Box:
    """Where a rank's local data lies in a tensor of `shape`; empty for a rank outside the mesh (None).

    Each sharding cuts what the ones before it left, in pieces as torch.chunk makes them. They come from left
    to right, but FSDP2 cuts what tensor parallelism, to the right of it in the mesh, has cut before: that is
    what _StridedShard says. (DTensor's own account of such a tensor goes from left to right and is off where
    sizes do not divide evenly: 217 rows on 2 x 4 ranks.)

    Raises:
        ValueError: a partial sum, or a stride that is not that of FSDP2 over tensor parallelism.
    """
    offsets, sizes = [0] * len(shape), list(shape)
    if coordinate is None:
        return Box(tuple(offsets), (0,) * len(shape))
    for axis, dim in _cuts(mesh_shape, placements):
        piece = -(-sizes[dim] // mesh_shape[axis])
        start = min(coordinate[axis] * piece, sizes[dim])
        offsets[dim] += start
        sizes[dim] = min(piece, sizes[dim] - start)
    return Box(tuple(offsets), tuple(sizes))


def _cuts(mesh_shape: Sequence[int], placements: Sequence[Placement]) -> list[tuple[int, int]]:
    """(mesh axis, dim) of every sharding, in the order in which they cut."""
    plain: list[tuple[int, int]] = []
    strided: list[tuple[int, int]] = []
    for axis, placement in reversed(list(enumerate(placements))):
        if isinstance(placement, _StridedShard):
            cut_before = math.prod(mesh_shape[other] for other, dim in plain + strided if dim == placement.dim)
            if placement.split_factor != cut_before:
                raise ValueError(f"{placements} on a mesh of {tuple(mesh_shape)} is no layout that can be stored")
            strided.append((axis, placement.dim))
        elif isinstance(placement, Shard):
            plain.insert(0, (axis, placement.dim))
        elif not isinstance(placement, Replicate):
            raise ValueError(f"{placement} is a value still to be reduced; it cannot be stored")
    return plain + strided


def describe(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    """What this rank holds, small enough to be exchanged between ranks."""
    return {name: Piece(tensor.dtype, tuple(tensor.shape), local_part(tensor)[0]) for name, tensor in tensors.items()}


def assign_writers(held: Sequence[Mapping[str, Piece]]) -> dict[str, StoredTensor]:
    """Decide who writes each box, so that every element is written once and the bytes are spread evenly.

    Pure and deterministic: every rank computes the same from the exchanged descriptions.

    Args:
        held: what each rank holds, in rank order.

    Raises:
        ValueError: the ranks hold different tensors, or their boxes do not tile one.
    """
    _check_agreement(held)
    holders: dict[tuple[str, Box], list[int]] = defaultdict(list)
    for rank, pieces in enumerate(held):
        for name, piece in pieces.items():
            if piece.box.elements:
                holders[name, piece.box].append(rank)

    load = [0] * len(held)
    parts: dict[str, list[tuple[int, Box]]] = defaultdict(list)

    def cost(item: tuple[tuple[str, Box], list[int]]) -> tuple[Any, ...]:
        (name, box), ranks = item
        # What only one rank holds comes first, then large before small: greedy balancing works best so.
        return len(ranks) > 1, -_bytes(held[0][name].dtype, box), name, box

    for (name, box), ranks in sorted(holders.items(), key=cost):
        writer = min(ranks, key=lambda rank: (load[rank], rank))
        load[writer] += _bytes(held[0][name].dtype, box)
        parts[name].append((writer, box))

    plan = {}
    for name, piece in held[0].items():
        boxes = sorted(parts[name], key=lambda part: part[1])
        if not tiles(piece.shape, [box for _, box in boxes]):
            raise ValueError(f"{name}: the shards of all ranks do not tile its shape {piece.shape}: {boxes}")
        plan[name] = StoredTensor(piece.dtype, piece.shape, tuple(boxes))
    return plan


def tiles(shape: tuple[int, ...], boxes: Sequence[Box]) -> bool:
    """Whether the boxes form a grid that covers the shape without gap or overlap."""
    if math.prod(shape) == 0:
        return not boxes
    cuts = 1
    for dim, size in enumerate(shape):
        spans = sorted({(box.offsets[dim], box.sizes[dim]) for box in boxes})
        ends = [offset + length for offset, length in spans]
        if [offset for offset, _ in spans] != [0, *ends[:-1]] or not ends or ends[-1] != size:
            return False
        cuts *= len(spans)
    return len(set(boxes)) == len(boxes) == cuts


def _check_agreement(held: Sequence[Mapping[str, Piece]]) -> None:
    for rank, pieces in enumerate(held[1:], start=1):
        odd = sorted(pieces.keys() ^ held[0].keys())
        odd += sorted(
            name
            for name in pieces.keys() & held[0].keys()
            if (pieces[name].dtype, pieces[name].shape) != (held[0][name].dtype, held[0][name].shape)
        )
        if odd:
            raise ValueError(f"ranks 0 and {rank} hold different tensors: {', '.join(odd[:5])}")


def _bytes(dtype: torch.dtype, box: Box) -> int:
    return box.elements * dtype.itemsize

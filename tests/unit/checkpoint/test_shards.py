from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from molgen_pretrain.checkpoint.shards import Box, Piece, assign_writers, box_of, tiles

SHAPES = st.lists(st.integers(0, 6), max_size=3).map(tuple)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape and a grid of boxes made by cutting each dim at random places."""
    shape = draw(SHAPES)
    spans = []
    for size in shape:
        cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))})
        spans.append(list(itertools.pairwise(cuts)))
    boxes = [Box(tuple(a for a, _ in cell), tuple(b - a for a, b in cell)) for cell in itertools.product(*spans)]
    return shape, [box for box in boxes if box.elements]


@given(grids())
def test_a_grid_tiles_and_anything_less_or_more_does_not(grid: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = grid
    assert tiles(shape, boxes)
    for index, box in enumerate(boxes):
        assert not tiles(shape, boxes[:index] + boxes[index + 1 :])
        assert not tiles(shape, [*boxes, box])


@given(grids(), grids())
def test_overlap_selects_the_same_elements_from_both(
    ours: tuple[tuple[int, ...], list[Box]], theirs: tuple[tuple[int, ...], list[Box]]
) -> None:
    shape, boxes = ours
    if theirs[0] != shape:
        theirs = (shape, [Box((0,) * len(shape), shape)])
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    everything = Box((0,) * len(shape), shape)
    for one, other in itertools.product(boxes, theirs[1]):
        common = one.overlap(other)
        first, second = whole[one.inside(everything)], whole[other.inside(everything)]
        if common.elements:
            assert torch.equal(first[common.inside(one)], second[common.inside(other)])
            assert torch.equal(first[common.inside(one)], whole[common.inside(everything)])
        else:
            assert not set(first.flatten().tolist()) & set(second.flatten().tolist())


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 6), st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_copies_are_written_once_and_spread(replicas: int, shards: int, rows: list[int]) -> None:
    held: list[dict[str, Piece]] = []
    for _, shard in itertools.product(range(replicas), range(shards)):
        pieces = {}
        for index, count in enumerate(rows):
            bounds = [count * part // shards for part in range(shards + 1)]
            box = Box((bounds[shard],), (bounds[shard + 1] - bounds[shard],))
            pieces[f"t{index}"] = Piece(torch.float32, (count,), box)
        held.append(pieces)

    plan = assign_writers(held)
    load = [0] * len(held)
    for name, stored in plan.items():
        assert tiles(stored.shape, [box for _, box in stored.parts])
        for rank, box in stored.parts:
            assert held[rank][name].box == box
            load[rank] += box.elements
    for shard in range(shards):
        ranks = [replica * shards + shard for replica in range(replicas)]
        biggest = max(held[rank][name].box.elements for rank in ranks for name in plan)
        assert max(load[rank] for rank in ranks) - min(load[rank] for rank in ranks) <= biggest


def test_ranks_that_disagree_are_refused() -> None:
    piece = Piece(torch.float32, (4,), Box((0,), (4,)))
    with pytest.raises(ValueError, match="different tensors: b"):
        assign_writers([{"a": piece}, {"a": piece, "b": piece}])
    with pytest.raises(ValueError, match="different tensors: a"):
        assign_writers([{"a": piece}, {"a": Piece(torch.bfloat16, (4,), piece.box)}])
    with pytest.raises(ValueError, match="do not tile"):
        assign_writers([{"a": Piece(torch.float32, (4,), Box((0,), (3,)))}])


def chunks(values: torch.Tensor, count: int, dim: int) -> list[torch.Tensor]:
    """torch.chunk, filled up with empty ones: what tensor parallelism and FSDP2 both cut with."""
    pieces = list(torch.chunk(values, count, dim))
    return pieces + [values.narrow(dim, 0, 0)] * (count - len(pieces))


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 1), st.integers(1, 4), st.integers(1, 5))
def test_fsdp_over_tensor_parallelism_is_found_where_it_is(
    rows: int, columns: int, tensor_dim: int, tensor_ranks: int, data_ranks: int
) -> None:
    """Tensor parallelism cuts first, along either dim; FSDP2 cuts dim 0 of what is left; copies of all that."""
    everything = torch.arange(rows * columns).reshape(rows, columns)
    first: Placement = _StridedShard(0, split_factor=tensor_ranks) if tensor_dim == 0 else Shard(0)
    placements = (Replicate(), first, Shard(tensor_dim))
    boxes = set()
    for copy, data, tensor in itertools.product(range(2), range(data_ranks), range(tensor_ranks)):
        held = chunks(chunks(everything, tensor_ranks, tensor_dim)[tensor], data_ranks, 0)[data]
        box = box_of((rows, columns), (2, data_ranks, tensor_ranks), placements, (copy, data, tensor))
        assert box.sizes == tuple(held.shape)
        assert torch.equal(everything[box.inside(Box((0, 0), (rows, columns)))], held)
        boxes |= {box} if box.elements else set()
    assert tiles((rows, columns), sorted(boxes))


def test_layouts_that_are_no_box_are_refused_and_strangers_hold_nothing() -> None:
    with pytest.raises(ValueError, match="no layout that can be stored"):
        box_of((8,), (2, 2), (_StridedShard(0, split_factor=4), Shard(0)), (0, 0))
    with pytest.raises(ValueError, match="no layout that can be stored"):
        box_of((8,), (2, 2), (Shard(0), _StridedShard(0, split_factor=2)), (0, 0))
    with pytest.raises(ValueError, match="still to be reduced"):
        box_of((8,), (2,), (Partial(),), (0,))
    assert box_of((8, 3), (2,), (Shard(0),), None).elements == 0

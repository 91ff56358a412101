"""Seconds of a collective over ranks in one node or several."""

from __future__ import annotations

import math
from dataclasses import dataclass

from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.planning.gpus import Gpu

# Estimates: the share of a link's speed that large messages reach, and what a message takes from rank to rank.
_REACHED = 0.8
_HOP_SECONDS_IN_NODE = 2e-6
_HOP_SECONDS_BETWEEN_NODES = 6e-6


@dataclass(frozen=True)
class Group:
    """`size` ranks that communicate, each `stride` ranks from the next; a node has `gpu.per_node` ranks."""

    size: int
    stride: int
    gpu: Gpu

    @property
    def spans_nodes(self) -> bool:
        return self.size * self.stride > self.gpu.per_node

    @property
    def bytes_per_second(self) -> float:
        """What reaches a rank. A ring leaves a node through the ports of all its members in that node, at once."""
        gbs = self.gpu.link_gbs
        if self.spans_nodes:
            members = max(1, self.gpu.per_node // self.stride)
            gbs = min(gbs, members * self.gpu.network_gbs)
        return _REACHED * gbs * 1e9

    @property
    def hop_seconds(self) -> float:
        return _HOP_SECONDS_BETWEEN_NODES if self.spans_nodes else _HOP_SECONDS_IN_NODE


@dataclass(frozen=True)
class Transfer:
    """What a rank receives, and how long that takes."""

    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Transfer) -> Transfer:
        return Transfer(self.bytes + other.bytes, self.seconds + other.seconds)

    def times(self, count: float) -> Transfer:
        return Transfer(count * self.bytes, count * self.seconds)


def gather(whole_bytes: float, group: Group) -> Transfer:
    """All-gather to `whole_bytes` on every rank, or reduce-scatter of as many: a ring of size - 1 hops, in each of
    which a rank passes on one part (Thakur et al. 2005; Patarasuk and Yuan 2009)."""
    if group.size == 1:
        return Transfer()
    received = whole_bytes * (group.size - 1) / group.size
    return Transfer(received, received / group.bytes_per_second + (group.size - 1) * group.hop_seconds)


def all_reduce(whole_bytes: float, group: Group) -> Transfer:
    """Twice the volume of a gather; NCCL takes a tree where latency counts, with two messages per level."""
    if group.size == 1:
        return Transfer()
    received = 2 * whole_bytes * (group.size - 1) / group.size
    return Transfer(received, received / group.bytes_per_second + 2 * math.log2(group.size) * group.hop_seconds)


def groups(degrees: Degrees, gpu: Gpu) -> tuple[Group, Group, Group]:
    """(tensor, shard, replicate): tensor-parallel ranks are neighbours, then come the parts of a copy, then copies."""
    return (
        Group(degrees.tensor, 1, gpu),
        Group(degrees.shard, degrees.tensor, gpu),
        Group(degrees.replicate, degrees.tensor * degrees.shard, gpu),
    )

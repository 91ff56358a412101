"""How many ranks a run has along each axis. Imports no torch: the config is checked with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from molgen_pretrain.errors import UserError


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis; their product is the world size.

    `replicate` copies of the model, each cut into `shard` parts by FSDP2, each of those into `tensor` parts.
    """

    replicate: int
    shard: int
    tensor: int
    fsdp: bool  # weights belong to FSDP2, which one rank may do as well

    @property
    def data_parallel(self) -> int:
        """Ranks that see different data."""
        return self.replicate * self.shard

    def describe(self) -> str:
        """What the axes come to, e.g. `FSDP over 4, 2 copies`."""
        parts = []
        if self.fsdp:
            parts.append(f"FSDP over {self.shard}")
        if self.tensor > 1:
            parts.append(f"tensor parallel over {self.tensor}")
        if self.replicate > 1:
            parts.append(f"{self.replicate} copies" if self.fsdp else f"DDP over {self.replicate}")
        return ", ".join(parts) or "one process"


def resolve_degrees(*, replicate: int, shard: int, tensor: int, world_size: int, tensor_divides: int = 0) -> Degrees:
    """The degrees that a user chose; a -1, for `replicate` or `shard`, becomes what is left of the world size.

    FSDP2 holds the weights where `shard` is not 1. It also does under tensor parallelism, which DDP knows nothing
    of: the gradients of parts and copies then arrive summed, and in the dtypes that FSDP2 was told.

    Raises UserError where they do not multiply to `world_size`, with the combinations that do and whose tensor
    degree divides `tensor_divides`.
    """
    given = {
        "data_parallel_replicate_degree": replicate,
        "data_parallel_shard_degree": shard,
        "tensor_parallel_degree": tensor,
    }
    for name, degree in given.items():
        may_be_inferred = name != "tensor_parallel_degree"
        if degree < 1 and not (degree == -1 and may_be_inferred):
            rest = ", or -1 (as many as are left)" if may_be_inferred else ""
            raise UserError(f"parallelism.{name}={degree}: must be at least 1{rest}")
    if replicate == shard == -1:
        raise UserError("parallelism.data_parallel_replicate_degree=-1: the shard degree is -1 too; give one of them")
    fsdp = shard != 1 or tensor > 1
    left = max(1, world_size // abs(replicate * shard * tensor))  # what a -1 stands for
    degrees = Degrees(left if replicate == -1 else replicate, left if shard == -1 else shard, tensor, fsdp)
    if degrees.data_parallel * tensor != world_size:
        raise UserError(_wrong_product(replicate, shard, tensor, world_size, _legal(world_size, tensor_divides)))
    return degrees


def tensor_degree_problems(
    tensor: int, *, num_attention_heads: int, num_key_value_heads: int, intermediate_size: int
) -> list[str]:
    """Why a model cannot be cut into `tensor` parts: every part takes whole heads, and as many as the others."""
    sizes = {
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "intermediate_size": intermediate_size,
    }
    legal = [str(d) for d in range(1, min(sizes.values()) + 1) if all(size % d == 0 for size in sizes.values())]
    return [
        f"parallelism.tensor_parallel_degree={tensor}: must divide model.{name}={size}; "
        f"legal for this model: {', '.join(legal)}"
        for name, size in sizes.items()
        if tensor >= 1 and size % tensor
    ]


def uneven_rows_problems(degrees: Degrees, rows: Mapping[str, int]) -> list[str]:
    """Why weights cannot be cut along both axes: rows (by the setting that decides them) that leave a rest.

    torch (2.13) places the parts of such a weight wrongly when it is gathered, for an export say.
    """
    parts = degrees.tensor * degrees.shard
    if degrees.tensor == 1 or degrees.shard == 1:
        return []
    return [
        f"{setting}={size}: must be a multiple of parallelism's tensor x shard degree, {degrees.tensor} x "
        f"{degrees.shard} = {parts}, which cut the same rows; nearest legal: {size // parts * parts or parts}"
        f" or {-(-size // parts) * parts}"
        for setting, size in rows.items()
        if size % parts
    ]


def _wrong_product(replicate: int, shard: int, tensor: int, world_size: int, legal: str) -> str:
    processes = "1 process was" if world_size == 1 else f"{world_size} processes were"
    if replicate == shard == tensor == 1:
        return (
            f"parallelism=single: {processes} started; use parallelism=fsdp (or ddp, hsdp, fsdp_tp); "
            f"legal degrees: {legal}"
        )
    return (
        f"parallelism: replicate x shard x tensor degree = {replicate} x {shard} x {tensor} is not the number of "
        f"processes: {processes} started; legal: {legal}; a replicate or shard degree of -1 takes "
        "what is left"
    )


def _legal(world_size: int, tensor_divides: int) -> str:
    divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
    return ", ".join(
        f"{replicate} x {world_size // tensor // replicate} x {tensor}"
        for tensor in divisors
        if tensor_divides % tensor == 0
        for replicate in divisors
        if world_size // tensor % replicate == 0
    )

"""Batch arithmetic: global_batch_size = local_batch_size * data-parallel degree * accumulation steps."""

from __future__ import annotations


def accumulation_steps(local_batch_size: int, global_batch_size: int, data_parallel_degree: int) -> int:
    """Micro-batches per update; a global batch of -1 means one. Sizes must have passed `batch_problems`."""
    if global_batch_size == -1:
        return 1
    return global_batch_size // (local_batch_size * data_parallel_degree)


def batch_problems(local_batch_size: int, global_batch_size: int, data_parallel_degree: int) -> list[str]:
    """The broken rule of a global batch size, with the nearest legal ones."""
    unit = local_batch_size * data_parallel_degree
    if global_batch_size == -1 or unit < 1:
        return []
    if global_batch_size >= unit and global_batch_size % unit == 0:
        return []
    below = global_batch_size // unit * unit
    legal = [str(size) for size in (below, below + unit) if size > 0]
    return [
        f"training.global_batch_size={global_batch_size}: must be a positive multiple of "
        f"training.local_batch_size ({local_batch_size}) * data-parallel degree ({data_parallel_degree}) "
        f"= {unit}; nearest legal: {' or '.join(legal)}, or -1 for no accumulation"
    ]

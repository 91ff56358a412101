"""Which checkpoints may go. Pure: decides on numbers, deletes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def steps_to_delete(committed: Mapping[int, bool], keep_latest_k: int, protect: Collection[int] = ()) -> list[int]:
    """Steps whose checkpoints are no longer wanted, ascending.

    Kept are the newest `keep_latest_k` (0 keeps all), every milestone and every protected step. The newest
    is always among the kept ones, so a run never loses its only checkpoint.

    Args:
        committed: step -> whether it is a milestone.
        keep_latest_k: how many of the newest to keep, milestones counted; 0 or more.
        protect: steps to keep whatever the rest says.

    Raises:
        ValueError: `keep_latest_k` is negative.
    """
    if keep_latest_k < 0:
        raise ValueError(f"keep_latest_k={keep_latest_k}: must be 0 (keep all) or more")
    if keep_latest_k == 0:
        return []
    older = sorted(committed)[:-keep_latest_k]
    return [step for step in older if not committed[step] and step not in protect]

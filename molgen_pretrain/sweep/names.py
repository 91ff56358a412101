"""Names of sweeps and points: from what was typed, so that the same command finds them again."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

_LONGEST = 120  # characters of a folder's name, with room for what file systems allow (255 bytes)
_DIGEST = 8


def sweep_name(description: str, overrides: Sequence[str]) -> str:
    """`<description>-<digest of the overrides>`; their order does not matter."""
    return f"{fit_for_a_folder(description) or 'sweep'}-{_digest(sorted(overrides))}"


def varying(points: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each point's overrides those that not all points have."""
    counts = Counter(override for point in points for override in set(point))
    return [[override for override in point if counts[override] < len(points)] for point in points]


def point_names(varying_overrides: Sequence[Sequence[str]]) -> list[str]:
    """A folder's name for every point: its overrides with the shortest keys that are not ambiguous.

    `run` for a point that varies nothing. Names are unique, and do not depend on the order of the points.
    """
    keys = {_key(override) for point in varying_overrides for override in point}
    labels = {key: _shortest(key, keys) for key in keys}
    names = []
    for point in varying_overrides:
        parts = [f"{labels[_key(o)]}={o.partition('=')[2]}" if "=" in o else labels[_key(o)] for o in point]
        name = fit_for_a_folder(",".join(parts)) or "run"
        names.append(name if len(name) <= _LONGEST else f"{name[: _LONGEST - _DIGEST - 1]}-{_digest(point)}")
    counts = Counter(names)
    # Two values may differ in what a folder's name cannot hold.
    names = [f"{n}-{_digest(p)}" if counts[n] > 1 else n for n, p in zip(names, varying_overrides, strict=True)]
    return [name if names.count(name) == 1 else f"{name}-{names[:i].count(name)}" for i, name in enumerate(names)]


def fit_for_a_folder(text: str) -> str:
    """`text` without what shells, file systems and Slurm take amiss."""
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "-", re.sub(r"[\[\]{}'\"]", "", text)).strip("-.,")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _shortest(key: str, among: set[str]) -> str:
    parts = key.split(".")
    for length in range(1, len(parts)):
        suffix = ".".join(parts[-length:])
        if sum(other == suffix or other.endswith(f".{suffix}") for other in among) == 1:
            return suffix
    return key


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:_DIGEST]

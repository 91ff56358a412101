"""Numbers as people read them, shared by the console lines and the closing table."""

from __future__ import annotations

import math
from datetime import timedelta

_SUFFIXES = ("", "k", "M", "B", "T")


def format_count(value: float) -> str:
    """A count to three significant digits: 950, 12.3k, 1.20M, 45.6B."""
    if not math.isfinite(value):
        return str(value)
    magnitude = 0
    while abs(value) >= 999.5 and magnitude < len(_SUFFIXES) - 1:
        value /= 1000
        magnitude += 1
    if magnitude == 0:
        return f"{value:.0f}"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}{_SUFFIXES[magnitude]}"


def format_duration(seconds: float) -> str:
    """Hours, minutes, seconds, with days in front where there are some: 0:02:11, 3 days, 4:05:06."""
    return str(timedelta(seconds=round(seconds)))


def format_percent(fraction: float) -> str:
    """A share of one as a percentage: 0.0123 is 1.2%."""
    return f"{100 * fraction:.1f}%"


def format_bytes(count: int) -> str:
    """Bytes in the units of disks: 950 B, 12.3 kB, 1.20 GB."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.3g} {unit}" if value < 99.5 else f"{value:.0f} {unit}"

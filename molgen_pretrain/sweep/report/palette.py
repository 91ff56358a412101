"""One look per point, the same on the page and in the picture."""

from __future__ import annotations

# After Okabe and Ito (Color Universal Design, 2008), adjusted until every pair stays apart for people who lack one
# kind of cone, on a white and on a dark page; their black and yellow, which vanish on one of the two, have given way.
LIGHT = ("#0072b2", "#d55e00", "#00966a", "#cc6aa4", "#e69f00", "#44a5df", "#5c5c66", "#7a4419")
DARK = ("#3391dd", "#f07b33", "#1fbf8f", "#ea86c6", "#f0b429", "#8fd0f7", "#747c8c", "#b98055")

DASHES = ("solid", "dash", "dot", "dashdot")


def look(index: int) -> tuple[int, int]:
    """Places in the palette and in DASHES: lines are dashed only when the colours are used up."""
    return index % len(LIGHT), index // len(LIGHT) % len(DASHES)

"""What a rank is doing now: written by its loop, read by the thread that tells the other ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_SILENCE_SECONDS = 5.0  # ranks report at least once a second


class Activity:
    """The step and phase of this rank's main thread.

    `place` is (step, phase), a new tuple with each `enter`, so that whoever holds the last one sees that the
    thread has moved on, also where step and phase are the same again.
    """

    def __init__(self) -> None:
        self.place = (0, "start-up")

    def enter(self, step: int, phase: str) -> None:
        """Say that update `step` is now in `phase`: data, forward, backward, optimizer, checkpoint or the like.

        Costs one assignment. Say it again in a long phase that goes on (with each batch of a validation).
        """
        self.place = (step, phase)


@dataclass
class Report:
    """Where a rank was when it last reported, and for how long it had not moved (seconds)."""

    step: int = 0
    phase: str = "start-up"
    still_seconds: float = 0.0
    silent_seconds: float = 0.0  # since the report

    @property
    def standstill_seconds(self) -> float:
        return self.still_seconds + self.silent_seconds

    def __str__(self) -> str:
        return f"at step {self.step}, in {self.phase}"


def survey(reports: dict[int, Report]) -> str:
    """All ranks by where they stand, those that stopped first in front: `rank 1 at step 12, in data; ranks ...`."""
    ranks: dict[str, list[int]] = {}
    longest: dict[str, float] = {}
    for rank, report in sorted(reports.items()):
        silent = report.silent_seconds > _SILENCE_SECONDS
        place = f"{report}, silent for {report.silent_seconds:.0f} s" if silent else str(report)
        ranks.setdefault(place, []).append(rank)
        longest[place] = max(longest.get(place, 0.0), report.standstill_seconds)
    # Whole seconds, since reports are up to one old; among equals the smaller group stands out.
    order = sorted(ranks, key=lambda place: (-round(longest[place]), len(ranks[place])))
    return "; ".join(f"{_named(ranks[place])} {place}" for place in order)


def _named(ranks: Iterable[int]) -> str:
    """`rank 3`, or `ranks 0, 2-7`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {text}" if len(spans) == 1 and spans[0][0] == spans[0][1] else f"ranks {text}"

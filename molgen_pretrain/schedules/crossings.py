"""Where a decay first falls to given learning rates: the steps that `checkpoint.at_lr` keeps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from molgen_pretrain.schedules.base import Phase, PhaseSpan, Schedule


def decay_crossings(schedule: Schedule, thresholds: Iterable[float], last_step: int) -> dict[int, float]:
    """The first step, up to `last_step`, of a decay at which the learning rate is at or below each threshold.

    Returns {step: threshold}, ascending; where one step passes several, the lowest. A threshold counts once,
    in the first decay that passes it; the way up (warmup, restart) does not count, and one that no decay
    comes down through is left out.
    """
    open_thresholds, found = set(thresholds), dict[int, float]()
    for span in schedule.phase_spans(last_step):
        if not open_thresholds:
            break
        if span.phase is not Phase.DECAY:
            continue
        for threshold in sorted(open_thresholds, reverse=True):
            step = _crossing(schedule, span, threshold)
            if step is not None:
                found[step] = threshold
                open_thresholds.remove(threshold)
    return dict(sorted(found.items()))


def _crossing(schedule: Schedule, span: PhaseSpan, threshold: float) -> int | None:
    """Within one decay the learning rate only falls, so a bisection finds the step."""
    above_before = max(schedule.lr(span.first - 1), schedule.lr(span.first)) > threshold
    if not above_before or schedule.lr(span.last) > threshold:
        return None
    steps = range(span.first, span.last + 1)
    return steps[bisect_left(steps, True, key=lambda step: schedule.lr(step) <= threshold)]

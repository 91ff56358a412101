"""A run as Slurm sees it, without torch: steps, a stop that all ranks agree on, one save, an exit code of 128 + n."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.signals import EndAtOnce, StopRequest

STEP_SECONDS = 0.2
STEPS_AFTER_RESTARTS = 4


@dataclass(frozen=True)
class Plan:
    """What a stand-in run does; it keeps everything in `folder`."""

    folder: Path
    restarts: int = 0  # it ends a few steps after it has been started again so often

    @property
    def history(self) -> Path:
        """A line per step: which start it was in, the step."""
        return self.folder / "history"

    @property
    def saved(self) -> Path:
        """The last step that was saved."""
        return self.folder / "saved"

    def steps(self) -> list[tuple[int, int]]:
        """(start, step) of every step that was done."""
        lines = self.history.read_text().splitlines() if self.history.exists() else []
        return [(int(start), int(step)) for start, step in (line.split() for line in lines)]


def train(plan: Plan) -> None:
    """An `Entry`. The ranks meet at every step, through files."""
    with EndAtOnce():
        start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        begin = int(plan.saved.read_text()) if plan.saved.exists() else 0
        with StopRequest() as stop:
            step = begin
            while start < plan.restarts or step < begin + STEPS_AFTER_RESTARTS:
                time.sleep(STEP_SECONDS)
                step += 1
                number = _highest(plan.folder / f"meet-{start}-{step}", stop.signal)
                if os.environ["RANK"] == "0":
                    with plan.history.open("a") as history:
                        history.write(f"{start} {step}\n")
                if number:
                    break
        if os.environ["RANK"] == "0":
            plan.saved.write_text(str(step))
        if number:
            sys.exit(128 + number)


def _highest(place: Path, signal_number: int) -> int:
    """The highest number of any rank, on all ranks, once all are here."""
    place.mkdir(exist_ok=True)
    aside = place / f".{os.environ['RANK']}"
    aside.write_text(str(signal_number))
    aside.rename(place / os.environ["RANK"])
    while len(numbers := list(place.glob("[0-9]*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.02)
    return max(int(number.read_text()) for number in numbers)

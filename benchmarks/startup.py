"""From command to first step on the bundled sample, beside the imports that every such program needs.

    python benchmarks/startup.py [--rounds 5]

Whole processes in alternation; medians. The first step counts as done when its row stands on the console. "CPU" is the
processor's time of the whole process, which noise on the machine disturbs less. "cold" has no data cache yet, so
that the one-time pass over the data is in it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness.application import TRAINING_ONLY, Workplace, application
from harness.report import Report, add_results_option

FIRST_STEP = re.compile(r"step\s+1/")
ONE_STEP = ("training.steps=1", "metrics.log_freq=1", *TRAINING_ONLY)
IMPORTS, FIRST, COLD, MISTAKE = "imports", "first step", "first step, cold", "a mistake is reported"
TARGET = 2.0


@dataclass(frozen=True)
class Times:
    wall: float
    cpu: float


def main() -> None:
    options = parse_arguments()
    report = Report("startup", "Start-up", options.results)
    with tempfile.TemporaryDirectory(prefix="molgen-startup-") as folder:
        workplace = Workplace(Path(folder), options.threads)
        cases: dict[str, Callable[[], Times]] = {
            IMPORTS: lambda: timed([sys.executable, "-c", "import torch, transformers"], workplace),
            FIRST: lambda: timed(application(*ONE_STEP), workplace, until=FIRST_STEP),
            COLD: lambda: timed(
                application(*ONE_STEP, f"paths.cache={tempfile.mkdtemp(dir=folder)}"), workplace, until=FIRST_STEP
            ),
            MISTAKE: lambda: timed(application("scheduler.checkpoints=[100,50]"), workplace, expected=1),
        }
        for measure in cases.values():  # files into the system's memory, the data cache onto the disk
            measure()
        found: dict[str, list[Times]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, measure in cases.items():
                found[name].append(measure())
    report.table(
        ("", "seconds", "lowest - highest", "of the imports", "CPU seconds", "of the imports'", "target"), table(found)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: every usable core")
    add_results_option(parser)
    return parser.parse_args()


def timed(
    command: list[str], workplace: Workplace, *, until: re.Pattern[str] | None = None, expected: int = 0
) -> Times:
    """Seconds until a line of the output matches, or until the end, and the processor's over the whole process.

    Raises RuntimeError where it ends in another way than expected.
    """
    before, began, seen = os.times(), time.perf_counter(), None
    process = subprocess.Popen(
        command, env=workplace.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    words = []
    for line in process.stdout:
        words.append(line)
        if until is not None and seen is None and until.search(line):
            seen = time.perf_counter()
    code = process.wait()
    ended = time.perf_counter() if until is None else seen
    if code != expected or ended is None:
        raise RuntimeError(f"{' '.join(command)}\nended with {code}:\n{''.join(words)}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Times(ended - began, cpu)


def table(found: dict[str, list[Times]]) -> list[tuple[str, ...]]:
    wall = {name: median(times.wall for times in found[name]) for name in found}
    cpu = {name: median(times.cpu for times in found[name]) for name in found}
    rows = []
    for name, times in found.items():
        each = [one.wall for one in times]
        ratios = "", ""
        if name != IMPORTS:
            ratios = f"{wall[name] / wall[IMPORTS]:.2f}x", f"{cpu[name] / cpu[IMPORTS]:.2f}x"
        target = f"about {TARGET:g}x" if name == FIRST else ""
        spread = f"{min(each):.2f} - {max(each):.2f}"
        rows.append((name, f"{wall[name]:.2f}", spread, ratios[0], f"{cpu[name]:.2f}", ratios[1], target))
    return rows


if __name__ == "__main__":
    main()

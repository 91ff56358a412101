"""Whether step time and memory stay flat: 200 steps of a small run of the application.

    python benchmarks/steady.py [--steps 200] [--device cuda] [OVERRIDE ...]

Every step is logged. Step time is what a quarter of the first and of the last quarter of all steps stay below (the very
first step apart): neighbours on the machine only ever add to it. Memory is the resident set of the training process
after given steps, and the peak that the run itself reports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from harness.application import TRAINING_ONLY, Workplace, application
from harness.report import Report, add_results_option

from molgen_pretrain.metrics.rows import Row, read_rows

POLL_SECONDS = 0.02
TIME_DRIFT, MEMORY_DRIFT = 0.05, 0.02  # that still counts as flat


def main() -> None:
    options = parse_arguments()
    marks = [max(2, options.steps // 4), options.steps // 2, options.steps - 1]
    report = Report("steady", f"Step time and memory over {options.steps} steps", options.results)
    with tempfile.TemporaryDirectory(prefix="molgen-steady-") as folder:
        workplace = Workplace(Path(folder), options.threads, options.device)
        rows, resident = watch(workplace, options, marks)
    quarter = max(2, options.steps // 4)
    seconds = [row["step_seconds"] for row in rows][1:]
    first, last = (quantiles(part, n=4)[0] for part in (seconds[:quarter], seconds[-quarter:]))
    report.table(
        ("", "early", "late", "late / early", "target"),
        [
            (
                f"step, ms: lower quartile of {quarter} steps",
                f"{1000 * first:.1f}",
                f"{1000 * last:.1f}",
                *drift(first, last, TIME_DRIFT),
            ),
            *(
                memory_row(f"resident set, MiB: steps {marks[0]} and {mark}", resident[marks[0]], resident[mark])
                for mark in marks[1:]
            ),
            memory_row(
                "peak, MiB: the same steps", *(1024 * rows[mark - 1]["memory_gib"] for mark in (marks[0], marks[-1]))
            ),
        ],
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, help="default: every usable core")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of the run, as the command line takes them")
    add_results_option(parser)
    return parser.parse_args()


def watch(workplace: Workplace, options: argparse.Namespace, marks: list[int]) -> tuple[list[Row], dict[int, float]]:
    """The rows of a run, and its resident set in MiB as seen right after each of the marked steps."""
    settings = [
        *TRAINING_ONLY, "run_name=steady", "metrics.log_freq=1", f"training.steps={options.steps}",
        "training.local_batch_size=2", "training.seq_len=512", "scheduler=constant",
        f"training.device={options.device}", *options.overrides,
    ]  # fmt: skip
    file = workplace.run_folder("steady") / "metrics.jsonl"
    log = workplace.folder / "log"
    resident: dict[int, float] = {}
    with log.open("w") as output:
        process = subprocess.Popen(application(*settings), env=workplace.environment(), stdout=output, stderr=output)
        while process.poll() is None:
            done = file.read_bytes().count(b"\n") if file.exists() else 0
            for mark in marks:
                if done >= mark and mark not in resident:
                    resident[mark] = resident_mib(process.pid)
            time.sleep(POLL_SECONDS)
    if process.returncode or len(resident) < len(marks):
        sys.exit(f"the run ended with {process.returncode}:\n{log.read_text()}")
    return [row for row in read_rows(file) if row["kind"] == "train"], resident


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024


def memory_row(name: str, early: float, late: float) -> tuple[str, ...]:
    return name, f"{early:,.0f}", f"{late:,.0f}", *drift(early, late, MEMORY_DRIFT)


def drift(early: float, late: float, allowed: float) -> tuple[str, str]:
    return f"{late / early:.3f}", f"<= {1 + allowed:g}"


if __name__ == "__main__":
    main()

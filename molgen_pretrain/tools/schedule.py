"""Shows a run's schedule before it costs anything.

    python -m molgen_pretrain.tools.schedule [the same overrides as the run] [--compare "OVERRIDES"] [--csv FILE]

Prints the phases with their steps, learning rates and tokens, the decays, the milestones and every warning
that the run would log at its start; writes schedule.png. Loads no torch and reads no data.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.schema import world_size_from_env
from molgen_pretrain.tools.command_line import run_reporting, write_files
from molgen_pretrain.tools.schedule_picture import draw_plans
from molgen_pretrain.tools.schedule_plan import RunPlan, overlaid, plan_run
from molgen_pretrain.tools.schedule_report import report

CSV_COLUMNS = ("plan", "step", "tokens", "lr", "weight_decay", "phase")
_FILE_WIDTH = 120  # columns where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where the run itself would be refused, with the same message."""
    options, overrides = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return run_reporting(lambda: show(options, overrides, console), explain)


def show(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """The report on `console`, then the files."""
    plans = build_plans(options, overrides)
    for part in report(plans):
        console.print(part, soft_wrap=True)
    write_files(plans, {options.png: draw_plans, options.csv: write_csv}, console)
    return 0


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, and the rest: the overrides."""
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.schedule",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides", nargs="*", help="group=choice, section.key=value, +experiment=NAME: as for the run"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="OVERRIDES",
        help="draw another schedule on top: these overrides over the run's (repeatable, quote each list)",
    )
    parser.add_argument("--png", type=Path, default=Path("schedule.png"), metavar="FILE", help="default: schedule.png")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="every step: " + ", ".join(CSV_COLUMNS))
    parser.add_argument(
        "--world-size", type=int, default=world_size_from_env(), help="processes of the run, for tokens"
    )
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="your own choices, as for the run")
    options = parser.parse_intermixed_args(arguments)
    return options, options.overrides


def build_plans(options: argparse.Namespace, overrides: list[str]) -> list[RunPlan]:
    """The run's plan first, then one per --compare."""
    lists = [overrides, *(overlaid(overrides, shlex.split(changes)) for changes in options.compare)]
    labels = ["this run", *options.compare]
    return [
        plan_run(items, label=label, world_size=options.world_size, config_dir=options.config_dir)
        for items, label in zip(lists, labels, strict=True)
    ]


def write_csv(plans: Sequence[RunPlan], path: Path) -> None:
    """Every step of every plan; numbers in full precision."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for plan in plans:
            writer.writerows(plan.rows())


if __name__ == "__main__":
    sys.exit(main())

"""Looks after the jobs of a sweep that Slurm runs, or submitit on this machine; the launcher need not run any more.

    python -m molgen_pretrain.tools.jobs list   SWEEP
    python -m molgen_pretrain.tools.jobs follow SWEEP [--key KEY ...] [--rank 0]
    python -m molgen_pretrain.tools.jobs cancel SWEEP [--key KEY ...]

SWEEP is the sweep's directory, KEY the name of a point or of a shared trunk. list shows what became of each job;
follow shows what its ranks print until all have ended (Ctrl-C leaves the jobs alone), with exit code 1 where one
did not finish; cancel ends jobs for good: a running one is told so and saves, and the command that began the sweep
continues it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from molgen_pretrain.errors import UserError
from molgen_pretrain.launchers.jobs import State
from molgen_pretrain.launchers.slurm_queue import LocalQueue, Queue, QueueSilent, SlurmQueue
from molgen_pretrain.launchers.slurm_records import JobFolder, JobRecord
from molgen_pretrain.launchers.slurm_watch import JobWatch
from molgen_pretrain.sweep.directory import SweepDirectory
from molgen_pretrain.tools.command_line import explain_mistake, run_reporting, subcommands
from molgen_pretrain.tools.jobs_text import LogTail, jobs_report

_TABLE_WIDTH = 160  # columns: names of run directories are long, a narrow terminal wraps the line


@dataclass(frozen=True)
class Chosen:
    """The jobs that a command is about."""

    sweep: SweepDirectory
    folder: JobFolder
    records: dict[str, JobRecord]
    queue: Queue
    are_named: bool  # by --key

    def watch(self, say: Callable[[str], None]) -> JobWatch:
        watch = JobWatch(self.folder, self.queue, say)
        watch.add(self.records.values())
        return watch


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: of follow 1 where a job did not finish, else 0; 1 where the user's words lead nowhere."""
    options = parse(arguments)
    console = Console(highlight=False)
    console.width = max(console.width, _TABLE_WIDTH)
    return run_reporting(lambda: options.command(options, console), _explain)


def _explain(error: Exception) -> str | None:
    return str(error) if isinstance(error, QueueSilent) else explain_mistake(error)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's function as `command`."""
    parser, commands = subcommands(
        "jobs",
        __doc__,
        (
            ("list", run_list, "what became of each job"),
            ("follow", run_follow, "what the jobs print, until all have ended"),
            ("cancel", run_cancel, "end jobs for good; running ones save"),
        ),
    )
    for command in commands.values():
        command.add_argument("path", type=Path, metavar="SWEEP", help="a sweep's directory, or the jobs folder in it")
        command.add_argument("--key", action="append", default=[], help="only this job; may be given again")
    follow = commands["follow"]
    follow.add_argument("--rank", type=int, default=0, help="whose output (default 0)")
    follow.add_argument("--poll-seconds", type=float, default=5.0, help="between two looks (default 5)")
    return parser.parse_args(arguments)


def find(options: argparse.Namespace) -> Chosen:
    """Raises UserError where there are no such jobs."""
    path: Path = options.path.absolute()
    sweep = SweepDirectory(path)
    folder = JobFolder(sweep.jobs)
    if not folder.jobs.exists() and JobFolder(path).jobs.exists():
        sweep, folder = SweepDirectory(path.parent), JobFolder(path)
    kind, records = folder.read()
    if kind is None:
        raise UserError(f"{options.path}: no {folder.jobs.name} here: nothing was submitted to Slurm from this sweep")
    if unknown := [key for key in options.key if key not in records]:
        raise UserError(f"--key {unknown[0]}: no such job; there are {', '.join(records)}")
    return Chosen(
        sweep,
        folder,
        {key: record for key, record in records.items() if not options.key or key in options.key},
        SlurmQueue() if kind == "slurm" else LocalQueue(folder.root),
        are_named=bool(options.key),
    )


def run_list(options: argparse.Namespace, console: Console) -> int:
    chosen = find(options)
    watch = chosen.watch(say=lambda line: None)
    watch.look()
    for part in jobs_report(chosen.sweep, chosen.records.values(), watch):
        console.print(part, soft_wrap=True)
    return 0


def run_cancel(options: argparse.Namespace, console: Console) -> int:
    chosen = find(options)
    watch = chosen.watch(say=lambda line: None)
    watch.look()
    chosen.queue.cancel([record.id for record in watch.running])
    for record in watch.running:
        console.print(f"cancelled: {record.key} ({chosen.queue.noun} {record.id})", markup=False)
    if not watch.running:
        console.print("all have ended before")
    return 0


def run_follow(options: argparse.Namespace, console: Console) -> int:
    chosen = find(options)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    watch = chosen.watch(say)
    watch.look()
    shown = chosen.records.values() if chosen.are_named else watch.running
    if short := [record for record in shown if options.rank not in range(len(record.logs))]:
        raise UserError(f"--rank {options.rank}: {short[0].key} has ranks 0 to {len(short[0].logs) - 1}")
    tails = [LogTail(chosen.folder.log(record, options.rank), f"[{record.key}] ") for record in shown]
    try:
        while True:
            for tail in tails:
                for line in tail.new_lines():
                    say(line)
            if not watch.running:
                break
            time.sleep(options.poll_seconds)
            watch.look()
    except KeyboardInterrupt:
        say("the jobs go on")
        return 130
    return 0 if all(outcome.state is State.FINISHED for outcome in watch.ended.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Looks after checkpoints without loading them: no torch, no GPU.

    python -m molgen_pretrain.tools.checkpoint list   RUN
    python -m molgen_pretrain.tools.checkpoint verify RUN|STEP
    python -m molgen_pretrain.tools.checkpoint show   RUN|STEP [--tensors]

RUN is a run's directory or its checkpoint folder, STEP one step-* folder. list shows what there is, why
retention keeps it, and whether files are missing or have another size; verify reads every byte and compares
checksums; show tells what one checkpoint (of a run: the newest) holds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.tree import Tree

from molgen_pretrain.checkpoint.commit import find_problems, read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged
from molgen_pretrain.metrics.formats import format_bytes
from molgen_pretrain.tools.checkpoint_contents import contents_report
from molgen_pretrain.tools.checkpoint_list import find_steps, list_report
from molgen_pretrain.tools.command_line import run_reporting, subcommands

_TABLE_WIDTH = 160  # columns: file names are never folded, a narrow terminal wraps the line


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a checkpoint is damaged or the user's words lead nowhere."""
    options = parse(arguments)
    console = Console(highlight=False)
    console.width = max(console.width, _TABLE_WIDTH)
    return run_reporting(lambda: options.command(options, console))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's function as `command`, its place as `path`."""
    parser, commands = subcommands(
        "checkpoint",
        __doc__,
        (
            ("list", run_list, "what there is, why it is kept, missing or cut files"),
            ("verify", run_verify, "read every byte and compare checksums"),
            ("show", run_show, "facts, training state and tensors of one checkpoint"),
        ),
    )
    for command in commands.values():
        command.add_argument("path", type=Path, help="a run's directory, its checkpoint folder or a step-* folder")
    tensors = "every tensor with shape, dtype and size, as a tree"
    commands["show"].add_argument("--tensors", action="store_true", help=tensors)
    return parser.parse_args(arguments)


def run_list(options: argparse.Namespace, console: Console) -> int:
    for part in list_report(options.path):
        console.print(part, soft_wrap=True)
    return 0


def run_verify(options: argparse.Namespace, console: Console) -> int:
    """A line per checkpoint, and one per damaged file."""
    steps = find_steps(options.path)
    damaged = [step for step in steps if not _verify(step, console)]
    console.print(f"{len(steps)} checkpoints, {len(damaged)} damaged")
    return 1 if damaged else 0


def run_show(options: argparse.Namespace, console: Console) -> int:
    newest = find_steps(options.path)[-1]
    for part in contents_report(newest, tensors=options.tensors):
        console.print(part, soft_wrap=not isinstance(part, Tree))  # trees fold their lines, the rest is for grep
    return 0


def _verify(folder: Path, console: Console) -> bool:
    began = time.perf_counter()
    problems: list[str] = []
    try:
        manifest = read_manifest(folder)
    except CheckpointDamaged as damage:
        problems = damage.problems
    else:
        names = sorted(manifest.files)
        with console.status(folder.name) as status:  # nothing where the output is no terminal
            for number, name in enumerate(names, start=1):
                size = format_bytes(manifest.files[name].bytes)
                status.update(f"{folder.name}: file {number} of {len(names)}, {name}, {size}")
                problems += find_problems(folder, manifest, [name])
    if problems:
        console.print(f"{folder.name}: DAMAGED", style="bold red")
        for line in problems:
            console.print(f"  {line}", markup=False)
        return False
    seconds = time.perf_counter() - began
    size = format_bytes(manifest.total_bytes)
    console.print(f"{folder.name}: sound, {len(names)} files, {size}, {seconds:.1f} s")
    return True


if __name__ == "__main__":
    sys.exit(main())

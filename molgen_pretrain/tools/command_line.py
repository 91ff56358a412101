"""What the tools have in common: mistakes are reported as the application reports them, files are named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from molgen_pretrain.errors import UserError, error_lines, full_errors

T = TypeVar("T")


Command = tuple[str, Callable[..., int], str]
"""A subcommand's name, its function, and what it does in a few words."""


def subcommands(
    tool: str, description: str | None, commands: Sequence[Command]
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of `python -m molgen_pretrain.tools.TOOL` and those of its commands, which set `command`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m molgen_pretrain.tools.{tool}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers = {}
    for name, function, summary in commands:
        parsers[name] = group.add_parser(name, help=summary, description=summary)
        parsers[name].set_defaults(command=function)
    return parser, parsers


def explain_mistake(error: Exception) -> str | None:
    """The message of a mistake of the user's, or of the file system; None for any other error."""
    return str(error) if isinstance(error, UserError | OSError) else None


def run_reporting(action: Callable[[], int], explain: Callable[[Exception], str | None] = explain_mistake) -> int:
    """The action's exit code; 1 for a mistake of the user's, whose message `explain` finds. HYDRA_FULL_ERROR=1 shows
    the trace instead."""
    try:
        return action()
    except Exception as error:
        message = explain(error)
        if message is None or full_errors():
            raise
        print(error_lines(message), file=sys.stderr)
        return 1


def write_files(content: T, writers: Mapping[Path | None, Callable[[T, Path], None]], console: Console) -> None:
    """Each file that was asked for (None: was not), named as it is written. Raises UserError where it cannot be."""
    for path, write in writers.items():
        if path is None:
            continue
        try:
            write(content, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        console.print(f"written: {path}", markup=False, soft_wrap=True)

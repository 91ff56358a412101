"""Turns a TOML file of the replaced stack into an experiment of this program.

    python -m molgen_pretrain.tools.migrate old.toml --paths paths.yaml --out conf/experiment/NAME.yaml

Writes the experiment and, beside it, conf/paths/NAME.yaml with the places that the aliases name. Prints what became of
every key, and the command that starts the run. Mistakes in the old files are told all at once, with their lines;
then nothing is written. Loads no torch and reads no data. docs/migrating.md has the table of all keys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from molgen_pretrain.config.messages import explain
from molgen_pretrain.migration import Migration, migrate
from molgen_pretrain.migration.ledger import shown
from molgen_pretrain.tools.command_line import run_reporting

_FILE_WIDTH = 160  # columns where the output is no terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where the old files have mistakes."""
    options = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return run_reporting(lambda: run(options, console), explain)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.migrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, help="the TOML file")
    parser.add_argument("--paths", type=Path, help="the paths.yaml that its aliases refer to")
    parser.add_argument("--out", type=Path, required=True, help="FOLDER/experiment/NAME.yaml")
    parser.add_argument("--processes", type=int, help="of the run, where a degree is -1: checked with, and started")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the files, then say what became of what."""
    migration = migrate(options.old, options.paths, options.out, processes=options.processes, replace=options.force)
    migration.write()
    for part in report(migration):
        console.print(part)
    for path in migration.files:
        console.print(f"written: {path}", markup=False, soft_wrap=True)
    console.print("start the run with", style="bold")
    console.print(f"  {migration.command}", markup=False, soft_wrap=True)
    return 0


def report(migration: Migration) -> Iterator[RenderableType]:
    """Every key of the old file in one of two tables; what was assumed; what to look at."""
    carried = [(str(f.line), f.key, shown(f.value), f.new) for f in migration.fates if not f.is_obsolete]
    obsolete = [(str(f.line), f.key, shown(f.value), f.reason) for f in migration.fates if f.is_obsolete]
    yield _table(f"Carried: {len(carried)} keys", "new", carried)
    if obsolete:
        yield _table(f"Obsolete: {len(obsolete)} keys", "why", obsolete)
    if migration.assumed:
        text = "Not in the old file, and set as the old stack had it: "
        yield Text.assemble((text, "bold"), ", ".join(migration.assumed))
    for note in migration.notes:
        yield Text.assemble(("note: ", "bold cyan"), note)


def _table(title: str, last: str, rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("line", justify="right")
    for column in ("old", "value", last):
        table.add_column(column, overflow="fold", no_wrap=column == "old")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


if __name__ == "__main__":
    sys.exit(main())

"""Compares the points of sweeps, or any runs.

    python -m molgen_pretrain.tools.report SWEEP_OR_RUN [...] [--out FOLDER]

Writes report.html (curves, table, tree of a sweep that shares its trunk; needs no network), report.md and
report.png, into the one folder that is given or into --out. Runs may be under way.
"""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from molgen_pretrain.sweep.report.make import make_report
from molgen_pretrain.tools.command_line import run_reporting


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 for a mistake of the user's."""
    options = parse(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)  # on stderr: what is left out, and why
    return run_reporting(lambda: report(options.folders, options.out))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="SWEEP_OR_RUN", help="directories, or patterns such as runs/*")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write; needed for more than one folder")
    return parser.parse_args(arguments)


def report(words: Sequence[str], out: Path | None) -> int:
    """Write the files, and name them."""
    files = make_report([folder for word in words for folder in expand(word)], out)
    for path in (files.html, files.markdown, files.picture):
        print(f"written: {path}")
    return 0


def expand(word: str) -> list[Path]:
    """The folder of that name, or those that the pattern matches (quoted, no shell has expanded it)."""
    path = Path(word)
    if path.exists() or not glob.has_magic(word):
        return [path]
    return sorted(folder for match in glob.glob(word) if (folder := Path(match)).is_dir())


if __name__ == "__main__":
    sys.exit(main())

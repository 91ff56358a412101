"""Every table that has a place in results/, or some of them, one after the other: `python benchmarks [NAME ...]`.

    python benchmarks                        # all
    python benchmarks startup steady         # these
    python benchmarks train_step -- --steps 5

Where there is a CUDA device `gpu` is measured too, elsewhere it is only made ready (`--dry`). One that fails does not
keep the others from running; the exit code tells.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness.report import gpu_names

FOLDER = Path(__file__).resolve().parent
TABLES = (
    "startup",
    "steady",
    "data_wait",
    "checkpoint_stall",
    "peak_memory",
    "plan_memory",
    "compact_vocabulary",
    "train_step",
    "gpu",
)


def main() -> int:
    names, options = parse_arguments()
    failed = []
    for name in names:
        extra = [] if options or name != "gpu" or gpu_names() else ["--dry"]
        began = time.monotonic()
        print(f"bench: {name}", file=sys.stderr, flush=True)
        command = [sys.executable, str(FOLDER / f"{name}.py"), *options, *extra]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse_arguments() -> tuple[list[str], list[str]]:
    """The tables, and options for each of them."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TABLES))
    names = parser.parse_args(words[:split]).names or list(TABLES)
    if unknown := set(names) - set(TABLES):
        parser.error(f"{', '.join(sorted(unknown))}: no such table; there are {', '.join(TABLES)}")
    return names, words[split + 1 :]


if __name__ == "__main__":
    sys.exit(main())

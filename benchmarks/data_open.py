"""What opening a large JSONL costs: the one-time pass, every later start, and the memory of a process.

    python benchmarks/data_open.py --lines 5000000 [--tokenizer FOLDER]

Writes short synthetic lines into a temporary folder, runs each phase in a fresh process and prints a Markdown
table beside the figures of the stack that this package replaces (same kind of machine, longer lines; its
figures come from an index of offsets only, without token counts).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

BUNDLED_TOKENIZER = Path(__file__).resolve().parents[1] / "molgen_pretrain" / "sample" / "tokenizer"
SEQ_LEN = 2048

# lines -> (index s, constructor s, first sample s, peak MiB) of the replaced stack
REPLACED = {1_000_000: ("0.2-0.3", "0.12", "1.0", "523"), 5_000_000: ("0.9", "0.66", "6.1", "1,189")}


def main() -> None:
    arguments = parse_arguments()
    if arguments.phase:
        run_phase(arguments.phase, arguments.folder, arguments.tokenizer)
        return
    with tempfile.TemporaryDirectory(prefix="molgen-data-open-") as folder:
        size = write_lines(Path(folder) / "data.jsonl", arguments.lines)
        imports = measure("import", folder, arguments.tokenizer)
        one_pass = measure("pass", folder, arguments.tokenizer)
        opening = measure("open", folder, arguments.tokenizer)
        first = measure("first", folder, arguments.tokenizer)
    replaced = REPLACED.get(arguments.lines, ("-",) * 4)
    lines_per_second = arguments.lines / one_pass["seconds"]
    print(f"{arguments.lines:,} lines, {size / 1e6:,.0f} MB; {describe_machine()}\n")
    print("| phase (fresh process, file cache hot) | seconds | peak memory MiB | replaced stack |")
    print("|---|---|---|---|")
    print(f"| imports alone | {imports['seconds']:.2f} | {imports['mib']:,.0f} | |")
    print(
        f"| one-time pass ({lines_per_second:,.0f} lines/s, {one_pass['tokens'] / one_pass['seconds'] / 1e6:.2f}"
        f" M tokens/s) | {one_pass['seconds']:.1f} | {one_pass['mib']:,.0f} | index {replaced[0]} s |"
    )
    print(f"| open | {opening['seconds']:.3f} | {opening['mib']:,.0f} | constructor {replaced[1]} s |")
    print(
        f"| open and first batch (2 x {SEQ_LEN}) | {first['seconds']:.3f} | {first['mib']:,.0f} |"
        f" first sample {replaced[2]} s, peak {replaced[3]} MiB |"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000_000)
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED_TOKENIZER)
    parser.add_argument("--phase", choices=("import", "pass", "open", "first"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_lines(file: Path, lines: int) -> int:
    """Lines of 67 to 86 bytes (about 27 tokens) from a few hundred templates; returns the file's size in bytes."""
    templates = []
    for number in range(500):
        atoms = 1 + number % 2
        embedded = "".join(f"[C]<{number % 10}.{number // 10:02d},-{atom}.5,0.7>" for atom in range(atoms))
        templates.append(json.dumps({"canonical_smiles": "C" * atoms, "embedded_smiles": embedded}) + "\n")
    with file.open("w") as out:
        for start in range(0, lines, len(templates)):
            out.writelines(templates[: lines - start])
    return file.stat().st_size


def measure(phase: str, folder: str, tokenizer: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--phase", phase, "--folder", folder, "--tokenizer", str(tokenizer)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout)


def run_phase(phase: str, folder: Path, tokenizer_folder: Path) -> None:
    """One phase in this process; prints its seconds and this process's peak memory as JSON."""
    start = time.perf_counter()
    from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
    from molgen_pretrain.data.tokenizer import UnitTokenizer

    tokenizer = UnitTokenizer.load(tokenizer_folder)
    tokens = 0
    if phase != "import":
        start = time.perf_counter()
        dataset = JsonlTaggedPackedDataset(
            paths=folder / "data.jsonl",
            tokenizer=tokenizer,
            seq_len=SEQ_LEN,
            local_batch_size=2,
            cache_dir=folder / "cache",
        )
        tokens = dataset.summary().tokens
        if phase == "first":
            list(islice(dataset, 1))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    print(json.dumps({"seconds": seconds, "mib": peak / unit, "tokens": tokens}))


def describe_machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()

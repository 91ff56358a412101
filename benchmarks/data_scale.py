"""Whether opening, resuming and memory stay flat as the data grows: the same phases at several sizes.

    python benchmarks/data_scale.py [--lines 5000000,50000000] [--tokenizer FOLDER] [--folder WHERE]

Writes real but short units (about 65 bytes, 19 tokens of the bundled tokenizer), runs each phase in a fresh
process and prints one Markdown table. The lines repeat after 100,000, which nothing here depends on: each is
parsed and tokenized, and the order mixes all. 50 million lines take 6 GB of disk and 5 to 20 minutes, nearly all
of it the one-time pass, which with lines this short is a measure of lines, not of tokens.

Memory is what is resident (VmRSS) in the process after the phase, over what it has after its imports and with
the tokenizer loaded; `peak` is VmHWM likewise. Reads /proc, so it wants Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

BUNDLED_TOKENIZER = Path(__file__).resolve().parents[1] / "molgen_pretrain" / "sample" / "tokenizer"
SEQ_LEN = 2048
BATCHES = 1000
REPEATED_LINES = 100_000

PHASES = {
    "pass": "one-time pass, token ids kept",
    "open": "open",
    "first-lengths": "open and first batch, lengths",
    "first-tokens": "open and first batch, tokens",
    "resume-lengths": "open and first batch at 90 % of an epoch, lengths",
    "resume-tokens": "open and first batch at 90 % of an epoch, tokens",
    "train-lengths": f"{BATCHES:,} batches from there, lengths",
    "train-tokens": f"{BATCHES:,} batches from there, tokens",
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.phase:
        run_phase(arguments.phase, arguments.folder, arguments.tokenizer)
        return
    columns = [measure_size(lines, arguments.tokenizer, arguments.folder) for lines in arguments.lines]
    print_table(arguments.lines, columns)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--lines", type=lambda text: [int(part) for part in text.split(",")], default="5000000,50000000"
    )
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED_TOKENIZER)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--phase", choices=("import", *PHASES), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_size(lines: int, tokenizer: Path, parent: Path | None) -> dict[str, dict[str, float]]:
    """phase -> figures, at one size."""
    with tempfile.TemporaryDirectory(prefix="molgen-data-scale-", dir=parent) as folder:
        write_lines(Path(folder) / "data.jsonl", lines)
        figures = {}
        for phase in ("import", *PHASES):
            command = [sys.executable, __file__, "--phase", phase, "--folder", folder, "--tokenizer", str(tokenizer)]
            figures[phase] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(f"{lines:,} lines, {phase}: {figures[phase]}", file=sys.stderr)
        return figures


def write_lines(file: Path, lines: int) -> None:
    """Molecules of one or two atoms with coordinates that differ."""
    block = []
    for number in range(min(lines, REPEATED_LINES)):
        x, y, z = number % 10, number // 10 % 100, number // 1000
        embedded = f"[C]<0.{x},1.{y},-2.{z}>" if number % 3 else f"[C]<{x},1,2>[O]<1,{y},{z}>"
        smiles = "C" if number % 3 else "CO"
        block.append(json.dumps({"canonical_smiles": smiles, "embedded_smiles": embedded}) + "\n")
    text = "".join(block).encode()
    with file.open("wb") as out:
        for _ in range(lines // len(block)):
            out.write(text)
        out.write("".join(block[: lines % len(block)]).encode())


def run_phase(phase: str, folder: Path, tokenizer_folder: Path) -> None:
    """One phase in this process; prints its figures as JSON."""
    from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
    from molgen_pretrain.data.plan import BLOCK_LINES
    from molgen_pretrain.data.tokenizer import UnitTokenizer

    tokenizer = UnitTokenizer.load(tokenizer_folder)
    children = ChildrenWatch()
    children.start()
    tokens = 0
    start = time.perf_counter()
    if phase != "import":
        action, _, cache = phase.partition("-")
        dataset = JsonlTaggedPackedDataset(
            paths=folder / "data.jsonl",
            tokenizer=tokenizer,
            seq_len=SEQ_LEN,
            local_batch_size=2,
            cache_dir=folder / "cache",
            cache=cache or "tokens",
        )
        summary = dataset.summary()
        assert not summary.bad_lines
        tokens = summary.tokens
        if action in ("resume", "train"):
            block = int(0.9 * summary.lines) // BLOCK_LINES
            dataset.start_at({"epoch": 0, "block": block, "offset": 0, "sequences": 0})
        list(islice(dataset, {"first": 1, "resume": 1, "train": BATCHES}.get(action, 0)))
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "tokens": tokens, "largest_child": children.peak_mib, **memory_mib()}))


def memory_mib(process: str = "self") -> dict[str, float]:
    """Resident memory of a process: all, its own part, the mapped files' part, and the peak of all."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    names = {"rss": "VmRSS", "anonymous": "RssAnon", "files": "RssFile", "peak": "VmHWM"}
    return {name: int(status[field].split()[0]) / 1024 for name, field in names.items()}


class ChildrenWatch(threading.Thread):
    """Notes the peak memory of the largest process that this one starts (the system's own figure is the parent's)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0

    def run(self) -> None:
        while True:
            time.sleep(0.2)
            for children in Path("/proc/self/task").glob("*/children"):
                for process in children.read_text().split():
                    with contextlib.suppress(OSError, KeyError):  # it has ended
                        self.peak_mib = max(self.peak_mib, memory_mib(process)["peak"])


def print_table(sizes: list[int], columns: list[dict[str, dict[str, float]]]) -> None:
    baselines = [column["import"] for column in columns]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    imports = " and ".join(f"{figures['rss']:.0f}" for figures in baselines)
    print(f"{machine}. Imports and tokenizer: {imports} MiB.")
    print("Each cell: seconds; MiB resident over that after the phase (of mapped files), peak over it.\n")
    heads = ["phase (fresh process, file cache hot)", *(f"{size:,} lines" for size in sizes), "seconds", "memory"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for phase, text in PHASES.items():
        figures = [column[phase] for column in columns]
        cells = [describe(phase, *of_size) for of_size in zip(sizes, figures, baselines, strict=True)]
        first, last = (size[phase]["rss"] - size["import"]["rss"] for size in (columns[0], columns[-1]))
        ratio = figures[-1]["seconds"] / figures[0]["seconds"]
        print(f"| {' | '.join([text, *cells])} | x{ratio:.2f} | {last - first:+.0f} MiB |")


def describe(phase: str, lines: int, figures: dict[str, float], baseline: dict[str, float]) -> str:
    over, files, peak = (figures[name] - baseline[name] for name in ("rss", "files", "peak"))
    text = f"{figures['seconds']:.3f} s; {over:.0f} ({files:.0f}), {peak:.0f}"
    if phase == "pass":
        rate = (
            f"{lines / figures['seconds']:,.0f} lines/s, {figures['tokens'] / figures['seconds'] / 1e6:.2f} M tokens/s"
        )
        text += f"; {rate}; largest of its processes {figures['largest_child']:.0f} MiB in all"
    return text


if __name__ == "__main__":
    main()

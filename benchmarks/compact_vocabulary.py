"""What the rows of unused tokens cost: training speed and peak memory with Qwen3's embedding rows and a compact one's.

    python benchmarks/compact_vocabulary.py [--threads N] [--steps N] [--repeats N] [--folder DIR]

Trains through the command line on the bundled sample, in float32 on the CPU: two sizes of model, each with 151,936 and
with 512 rows, in turn, every run in a process of its own. The tokenizer is the sample's in all of them, so both see the
same tokens, as with a compact tokenizer of a proved segmentation: what differs is the number of rows alone. Prints a
Markdown table: tokens, padding left out, per second of the wall clock without the first step, the peak of the process's
resident memory, and the ratios. Figures of every run are shown, as other work on the machine shows in them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from statistics import median

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.metrics.rows import read_rows
from molgen_pretrain.model.hf_config import tensor_shapes

FULL, COMPACT = 151_936, 512
SIZES = {
    "256 x 4": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768},
    "512 x 8": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1536},
}
LOCAL_BATCH, SEQ_LEN = 2, 512
# The loss in chunks, for both: else the full vocabulary's logits alone would take gigabytes. It computes them twice.
RUN = (
    f"training.seq_len={SEQ_LEN}", f"training.local_batch_size={LOCAL_BATCH}", "training.dtype=float32",
    "model.num_key_value_heads=2", "model.head_dim=64", "model.loss_chunk_tokens=512", "scheduler=constant",
    "metrics.log_freq=1", "metrics.tensorboard=false", "checkpoint.enable=false", "validation.enable=false",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="default: 1, which other work disturbs least")
    parser.add_argument("--steps", type=int, default=4, help="of each run; the first is not timed")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where runs go; default: a temporary folder")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2")
    print(f"batch {LOCAL_BATCH} x {SEQ_LEN}, float32, threads: {arguments.threads}, median of {arguments.repeats} runs")
    print()
    print("| hidden x layers | rows | parameters | tokens/s (each run) | ratio | peak memory, GiB | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in SIZES:
            measure(Path(folder), size, arguments)


def measure(folder: Path, size: str, arguments: argparse.Namespace) -> None:
    """Print the rows of one size."""
    found: dict[int, list[tuple[float, float]]] = {FULL: [], COMPACT: []}
    for repeat in range(arguments.repeats):
        for rows, runs in found.items():
            runs.append(train(folder, size, rows, repeat, arguments))
    base_speed, base_peak = (median(column) for column in zip(*found[FULL], strict=True))
    for rows, runs in found.items():
        speed, peak = (median(column) for column in zip(*runs, strict=True))
        each = ", ".join(f"{run[0]:,.0f}" for run in runs)
        print(
            f"| {size} | {rows:,} | {parameters(size, rows) / 1e6:.1f} M | {speed:,.0f} ({each})"
            f" | {speed / base_speed:.1f} | {peak:.2f} | {peak / base_peak:.2f} |",
            flush=True,
        )


def train(folder: Path, size: str, rows: int, repeat: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """(tokens/s, peak memory in GiB) of one run of the application."""
    name = f"{size.replace(' ', '')}-{rows}-{repeat}"
    settings = [f"training.steps={arguments.steps}", f"run_name={name}", *overrides(size, rows)]
    command = [sys.executable, "-m", "molgen_pretrain", *RUN, *settings]
    places = {"MOLGEN_RUNS": str(folder / "runs"), "MOLGEN_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **places, "OMP_NUM_THREADS": str(arguments.threads)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    steps = read_rows(folder / "runs" / name / "metrics.jsonl")
    seconds = sum(step["step_seconds"] for step in steps[1:])
    return (steps[-1]["tokens"] - steps[0]["tokens"]) / seconds, steps[-1]["memory_gib"]


def parameters(size: str, rows: int) -> int:
    sizes = vars(compose_run([*RUN, *overrides(size, rows)]).model)
    return sum(prod(shape) for shape in tensor_shapes(sizes).values())


def overrides(size: str, rows: int) -> list[str]:
    return [f"data.embedding_rows={rows}", *(f"model.{key}={value}" for key, value in SIZES[size].items())]


if __name__ == "__main__":
    main()

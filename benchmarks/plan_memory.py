"""What tools.plan says of a CPU's memory, against whole runs.

    python benchmarks/plan_memory.py [--steps 3] [--setting key=value ...]

Runs the application in a process of its own for each size and dtype and compares the highest memory_gib of its
metrics.jsonl with the plan of the same overrides. glibc is told to give freed memory back at once: what it keeps
otherwise is no need of the run's. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from molgen_pretrain.planning.memory import GIB
from molgen_pretrain.tools.plan import figure_out, parse

RUN = (
    "training.device=cpu", "training.seq_len=512", "training.local_batch_size=4", "scheduler.warmup_steps=1",
    "checkpoint.enable=false", "checkpoint.hf_export=never", "validation.enable=false", "metrics.log_freq=1",
    "metrics.tensorboard=false", "data.num_workers=0", "model.head_dim=64",
)  # fmt: skip
# (hidden size, layers, rows of the vocabulary): activations, all of it, and the loss are what counts most.
SIZES = ((256, 4, 8192), (512, 8, 8192), (256, 4, 151936))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="the first makes the optimizer's state (default: 3)")
    parser.add_argument("--setting", nargs="*", default=[], help="more overrides, for every run")
    arguments = parser.parse_args()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}, 4 x 512 tokens\n")
    print("| hidden x layers | vocabulary | dtype | measured GiB | planned GiB | planned / measured |")
    print("|---|---|---|---|---|---|")
    for hidden, layers, rows in SIZES:
        for dtype in ("float32", "bfloat16"):
            overrides = [*RUN, *model_overrides(hidden, layers, rows), f"training.dtype={dtype}", *arguments.setting]
            overrides += [f"training.steps={arguments.steps}", f"scheduler.checkpoints=[{arguments.steps}]"]
            measured, planned = measure(overrides), figure_out(parse(overrides)).peak_bytes / GIB
            row = f"{hidden} x {layers} | {rows:,} | {dtype} | {measured:.3f} | {planned:.3f}"
            print(f"| {row} | {planned / measured:.3f} |", flush=True)


def model_overrides(hidden: int, layers: int, rows: int) -> list[str]:
    sizes = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "intermediate_size": 3 * hidden,
    }
    return [f"model.{name}={size}" for name, size in sizes.items()]


def measure(overrides: list[str]) -> float:
    """GiB resident at the highest."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        command = [sys.executable, "-m", "molgen_pretrain", "run_name=measured", *overrides]
        subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        rows = (Path(folder) / "runs" / "measured" / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(row)["memory_gib"] for row in rows)


if __name__ == "__main__":
    main()

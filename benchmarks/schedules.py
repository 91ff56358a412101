"""Validation loss of the sample model under five schedules at equal steps, over several seeds.

    python benchmarks/schedules.py [--steps 150] [--seeds 3] [--jobs 2]

Every run is the command line's own (a fresh process, float32, the bundled conformers) and differs from
the others in schedule and seed alone; a seed fixes initial weights and data order. Warmup, peak learning
rate and step count are the same for all. Prints a Markdown table: mean and standard deviation over the seeds, halfway
(where wsds has its first milestone) and at the end, and the difference to the first row seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOW_SHARE = 0.1  # of the peak: where the schedules end, but for linear to zero

# wsds and wsd share the last decay, so that they differ in wsds' first milestone and its way back up alone.
DECAY = "scheduler.lr_min={low} scheduler.decay_frac=0.2 scheduler.decay_shape=one_minus_sqrt"
SCHEDULES = {
    "wsds": f"scheduler=wsds {DECAY} scheduler.checkpoints_frac=[0.5,1.0] scheduler.decay_frac_of=target",
    "wsd": f"scheduler=wsd {DECAY}",
    "cosine": "scheduler=cosine scheduler.min_lr={low}",
    "sgdr": "scheduler=sgdr scheduler.lr_min={low} scheduler.cycles=2 scheduler.cycle_mult=1",
    "linear to zero": "scheduler=linear scheduler.min_lr=0",
}


def main() -> None:
    options = parse_arguments()
    began = time.monotonic()
    runs = [(name, seed) for seed in range(options.seeds) for name in SCHEDULES]
    with tempfile.TemporaryDirectory(prefix="molgen-schedules-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda run: train(*run, options, Path(folder)), runs))
    losses = dict(zip(runs, found, strict=True))
    print_table({name: [losses[name, seed] for seed in range(options.seeds)] for name in SCHEDULES}, options)
    print(f"\n{describe_machine()}; {(time.monotonic() - began) / 60:.1f} minutes for all runs")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--local-batch-size", type=int, default=2, help="sequences of 1,024 tokens per step")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, which share the cores")
    return parser.parse_args()


def train(name: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[int, float]:
    """Validation loss by step, at the half and at the end."""
    steps, half = options.steps, options.steps // 2
    run_name = f"{name.replace(' ', '-')}-{seed}"
    overrides = [
        *SCHEDULES[name].format(low=LOW_SHARE * options.lr).split(),
        f"run_name={run_name}",
        f"paths.runs={folder}",
        f"training.steps={steps}",
        f"training.seed={seed}",
        f"training.local_batch_size={options.local_batch_size}",
        "training.dtype=float32",
        "scheduler.warmup_frac=0.05",
        f"optimizer.lr={options.lr}",
        f"validation.freq={half}",
        "validation.local_batch_size=4",
        "validation.steps=15",  # about half of the split
        "checkpoint.enable=false",
        "checkpoint.hf_export=never",
        "metrics.tensorboard=false",
        "metrics.progress_bar=false",
    ]
    print(f"{run_name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "molgen_pretrain", *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs))}
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")
    rows = map(json.loads, (folder / run_name / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "validation"}


def print_table(losses: dict[str, list[dict[int, float]]], options: argparse.Namespace) -> None:
    half, steps = options.steps // 2, options.steps
    tokens = steps * options.local_batch_size * 1024
    first = next(iter(losses))
    print(f"{steps} steps, {tokens / 1e6:.2f} M tokens per run, peak lr {options.lr:g}, {options.seeds} seeds\n")
    print(f"| schedule | validation loss, step {half} | validation loss, step {steps} | minus {first}, seed by seed |")
    print("|---|---|---|---|")
    for name, runs in losses.items():
        ends = [run[steps] for run in runs]
        gains = [run[steps] - base for run, base in zip(runs, (run[steps] for run in losses[first]), strict=True)]
        difference = "" if name == first else spread(gains, "+")
        print(f"| {name} | {spread([run[half] for run in runs])} | {spread(ends)} | {difference} |")


def spread(values: list[float], sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{deviation}"


def describe_machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()

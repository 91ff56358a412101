"""Every parallel layout trains the same run: through the command line, on gloo ranks of this machine.

    python benchmarks/layouts.py [--accumulation 1 2 4] [--no-resume] [--folder FOLDER]

Trains 20 float32 steps of a tiny model in every layout and prints how far losses and gradient norms are from those
of one process, the largest relative difference of any step. Then every layout continues from the checkpoint that
every other one saved at step 10, and steps 11 to 20 are compared in the same way. 21 runs and 49 continuations: half
an hour on two busy cores. Exits with 1 where a difference is above 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

STEPS, SAVED = 20, 10
GLOBAL_BATCH = 16
LIMIT = 1e-4
RUN = (
    "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=4", "model.num_key_value_heads=2",
    "model.head_dim=16", "model.intermediate_size=64", f"training.steps={STEPS}", "training.seq_len=128",
    "training.dtype=float32", f"training.global_batch_size={GLOBAL_BATCH}", f"scheduler.checkpoints=[{STEPS}]",
    "metrics.log_freq=1", "metrics.tensorboard=false", f"checkpoint.interval={SAVED}", "checkpoint.hf_export=never",
    "validation.enable=false",
)  # fmt: skip
# name: processes, ranks that see different data, overrides
LAYOUTS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "one process": (1, 1, ("parallelism=single",)),
    "ddp 2": (2, 2, ("parallelism=ddp",)),
    "fsdp 2": (2, 2, ("parallelism=fsdp",)),
    "fsdp 4": (4, 4, ("parallelism=fsdp",)),
    "hsdp 2x2": (4, 4, ("parallelism=hsdp",)),
    "tp 2": (2, 1, ("parallelism=fsdp_tp",)),
    "fsdp 2 x tp 2": (4, 2, ("parallelism=fsdp_tp",)),
}
Curve = dict[int, tuple[float, float]]  # step: loss, gradient norm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--no-resume", action="store_true", help="only the first table")
    parser.add_argument("--folder", type=Path, help="where runs go; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="molgen-layouts-") as temporary:
        folder = arguments.folder or Path(temporary)
        reference = train(folder, "one process", 1)
        worst = compare_layouts(folder, reference, arguments.accumulation)
        if not arguments.no_resume:
            worst = max(worst, compare_resumes(folder, reference))
    print(f"\nlargest relative difference: {worst:.1e}; limit {LIMIT:.0e}")
    return int(worst > LIMIT)


def compare_layouts(folder: Path, reference: Curve, accumulations: Sequence[int]) -> float:
    """Print the first table; the largest difference."""
    print(f"{STEPS} steps against one process: largest relative difference of loss / gradient norm\n")
    print("| layout | " + " | ".join(f"accumulation {steps}" for steps in accumulations) + " |")
    print("|---|" + "---|" * len(accumulations))
    worst = 0.0
    for layout in LAYOUTS:
        cells = []
        for steps in accumulations:
            known = layout == "one process" and steps == 1
            found = reference if known else train(folder, layout, steps)
            loss, norm = differences(found, reference)
            worst = max(worst, loss, norm)
            cells.append(f"{loss:.1e} / {norm:.1e}")
        print(f"| {layout} | " + " | ".join(cells) + " |", flush=True)
    return worst


def compare_resumes(folder: Path, reference: Curve) -> float:
    """Print the second table; the largest difference."""
    print(f"\nsaved at step {SAVED} by the row, continued to step {STEPS} by the column\n")
    print("| | " + " | ".join(LAYOUTS) + " |")
    print("|---|" + "---|" * len(LAYOUTS))
    later = {step: values for step, values in reference.items() if step > SAVED}
    worst = 0.0
    for saver in LAYOUTS:
        source = folder / "runs" / run_name(saver, 1)
        if not source.exists():
            train(folder, saver, 1)
        cells = []
        for reader in LAYOUTS:
            name = f"{run_name(saver, 1)}-then-{run_name(reader, 1)}"
            step = source / "checkpoint" / f"step-{SAVED:08d}"
            loss, norm = differences(train(folder, reader, 1, name, "init=resume", f"init.from={step}"), later)
            worst = max(worst, loss, norm)
            cells.append(f"{loss:.1e} / {norm:.1e}")
        print(f"| {saver} | " + " | ".join(cells) + " |", flush=True)
    return worst


def train(folder: Path, layout: str, accumulation: int, name: str = "", *overrides: str) -> Curve:
    """Run the application and read its losses and gradient norms."""
    processes, data_ranks, choice = LAYOUTS[layout]
    name = name or run_name(layout, accumulation)
    local = f"training.local_batch_size={GLOBAL_BATCH // (data_ranks * accumulation)}"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "molgen_pretrain", *RUN, *choice, local, f"run_name={name}", *overrides]
    places = {"MOLGEN_RUNS": str(folder / "runs"), "MOLGEN_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, env={**os.environ, **places, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if row["kind"] == "train"}


def run_name(layout: str, accumulation: int) -> str:
    return f"{layout.replace(' ', '-')}-acc{accumulation}"


def differences(found: Curve, expected: Curve) -> tuple[float, float]:
    """Largest relative difference of any step's loss, and of its gradient norm."""
    if found.keys() != expected.keys():
        raise SystemExit(f"other steps: {sorted(found.keys() ^ expected.keys())}")
    loss, norm = (max(abs(found[step][which] / expected[step][which] - 1) for step in expected) for which in (0, 1))
    return loss, norm


if __name__ == "__main__":
    sys.exit(main())

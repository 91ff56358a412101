"""What tools.plan says of a CPU's memory, against whole runs.

    python benchmarks/plan_memory.py [--steps 3] [OVERRIDE ...]

Runs the application in a process of its own for each size and dtype and compares the highest memory_gib of its rows
with the plan of the same overrides. glibc is told to give freed memory back at once: what it keeps otherwise is no
need of the run's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from harness.application import TRAINING_ONLY, Workplace
from harness.report import Report, add_results_option

from molgen_pretrain.planning.memory import GIB
from molgen_pretrain.tools.plan import figure_out, parse

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
RUN = (
    *TRAINING_ONLY, "training.device=cpu", "training.seq_len=512", "training.local_batch_size=4",
    "scheduler.warmup_steps=1", "metrics.log_freq=1", "data.num_workers=0", "model.head_dim=64",
)  # fmt: skip
# (hidden size, layers, rows of the vocabulary): activations, all of it, and the loss are what counts most.
SIZES = ((256, 4, 8192), (512, 8, 8192), (256, 4, 151936))
# (settings, in words): as it runs by default, and as the plainest transformers model does.
KINDS = (
    ((), "default"),
    (("model.fused_ops=false", "model.loss_kernel=plain"), "transformers' operators, plain loss"),
)
ALLOWED = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="the first makes the optimizer's state (default: 3)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of every run")
    add_results_option(parser)
    options = parser.parse_args()
    report = Report("plan_memory", "Planned and measured memory of runs, 4 x 512 tokens", options.results)
    columns = ("hidden x layers, rows, dtype", "measured GiB", "planned GiB", "planned / measured", "target")
    with tempfile.TemporaryDirectory(prefix="molgen-plan-") as folder:
        for settings, name in KINDS:
            report.add(f"Operators and loss: {name}")
            report.table(columns, rows(Workplace(Path(folder), variables=GIVE_BACK), settings, options))


def rows(workplace: Workplace, settings: tuple[str, ...], options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    for (hidden, layers, vocabulary), dtype in product(SIZES, ("float32", "bfloat16")):
        overrides = [
            *RUN, *model(hidden, layers, vocabulary), f"training.dtype={dtype}", f"training.steps={options.steps}",
            f"scheduler.checkpoints=[{options.steps}]", *settings, *options.overrides,
        ]  # fmt: skip
        name = f"{len(settings)}-{hidden}-{vocabulary}-{dtype}"
        measured = max(row["memory_gib"] for row in workplace.train(name, overrides))
        planned = figure_out(parse(overrides)).peak_bytes / GIB
        words = f"{hidden} x {layers}, {vocabulary:,}, {dtype}"
        target = f"{1 - ALLOWED:g} to {1 + ALLOWED:g}"
        yield words, f"{measured:.3f}", f"{planned:.3f}", f"{planned / measured:.3f}", target


def model(hidden: int, layers: int, vocabulary: int) -> list[str]:
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "intermediate_size": 3 * hidden,
    }
    return [f"model.{name}={size}" for name, size in sizes.items()]


if __name__ == "__main__":
    main()

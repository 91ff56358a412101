"""What the rows of unused tokens cost: training speed and peak memory with Qwen3's embedding rows and a compact one's.

    python benchmarks/compact_vocabulary.py [--threads N] [--steps N] [--repeats N] [--folder DIR]

Trains through the command line on the bundled sample, in float32 on the CPU: two sizes of model, each with 151,936 and
with 512 rows, in turn, every run in a process of its own. The tokenizer is the sample's in all of them, so both see the
same tokens, as with a compact tokenizer of a proved segmentation: what differs is the number of rows alone. Tokens,
padding left out, per second of the wall clock without the first step, the peak of the process's
resident memory, and the ratios. Figures of every run are shown, as other work on the machine shows in them.
"""

from __future__ import annotations

import argparse
import tempfile
from math import prod
from pathlib import Path
from statistics import median

from harness.application import TRAINING_ONLY, Workplace
from harness.report import Report, add_results_option

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.model.hf_config import tensor_shapes

FULL, COMPACT = 151_936, 512
SIZES = {
    "256 x 4": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768},
    "512 x 8": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1536},
}
LOCAL_BATCH, SEQ_LEN = 2, 512
RUN = (
    *TRAINING_ONLY, f"training.seq_len={SEQ_LEN}", f"training.local_batch_size={LOCAL_BATCH}",
    "training.dtype=float32", "model.num_key_value_heads=2", "model.head_dim=64", "scheduler=constant",
    "metrics.log_freq=1",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="default: 1, which other work disturbs least")
    parser.add_argument("--steps", type=int, default=4, help="of each run; the first is not timed")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where runs go; default: a temporary folder")
    add_results_option(parser)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2")
    report = Report("compact_vocabulary", "What the rows of unused tokens cost", arguments.results)
    threads = f"threads: {arguments.threads}"
    report.add(f"batch {LOCAL_BATCH} x {SEQ_LEN}, float32, {threads}, median of {arguments.repeats} runs")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        workplace = Workplace(Path(folder), arguments.threads)
        rows = [row for size in SIZES for row in measure(workplace, size, arguments)]
    columns = ("hidden x layers", "rows", "parameters", "tokens/s (each run)", "ratio", "peak memory, GiB", "ratio")
    report.table(columns, rows)


def measure(workplace: Workplace, size: str, arguments: argparse.Namespace) -> list[tuple[str, ...]]:
    """The rows of one size."""
    found: dict[int, list[tuple[float, float]]] = {FULL: [], COMPACT: []}
    for repeat in range(arguments.repeats):
        for rows, runs in found.items():
            runs.append(train(workplace, size, rows, repeat, arguments.steps))
    base_speed, base_peak = (median(column) for column in zip(*found[FULL], strict=True))
    table = []
    for rows, runs in found.items():
        speed, peak = (median(column) for column in zip(*runs, strict=True))
        each = ", ".join(f"{run[0]:,.0f}" for run in runs)
        ratios = f"{speed / base_speed:.1f}", f"{peak / base_peak:.2f}"
        millions = f"{parameters(size, rows) / 1e6:.1f} M"
        table.append((size, f"{rows:,}", millions, f"{speed:,.0f} ({each})", ratios[0], f"{peak:.2f}", ratios[1]))
    return table


def train(workplace: Workplace, size: str, rows: int, repeat: int, steps: int) -> tuple[float, float]:
    """(tokens/s, peak memory in GiB) of one run of the application."""
    name = f"{size.replace(' ', '')}-{rows}-{repeat}"
    found = workplace.train(name, [f"training.steps={steps}", *RUN, *overrides(size, rows)])
    seconds = sum(step["step_seconds"] for step in found[1:])
    return (found[-1]["tokens"] - found[0]["tokens"]) / seconds, found[-1]["memory_gib"]


def parameters(size: str, rows: int) -> int:
    sizes = vars(compose_run([*RUN, *overrides(size, rows)]).model)
    return sum(prod(shape) for shape in tensor_shapes(sizes).values())


def overrides(size: str, rows: int) -> list[str]:
    return [f"data.embedding_rows={rows}", *(f"model.{key}={value}" for key, value in SIZES[size].items())]


if __name__ == "__main__":
    main()

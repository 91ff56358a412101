"""How long training waits for data, by what the application's own metrics say: the sample model, and the worst case.

    python benchmarks/data_wait.py [--steps 60]

On the bundled sample with 0 and 1 data workers, token ids cached or made from text as training goes. The worst case is
a model so small that its steps take milliseconds. The first step is left out: the worker starts there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness.application import TRAINING_ONLY, Workplace
from harness.report import Report, add_results_option

MODELS = {
    "sample model (128 x 6)": (),
    "worst case (16 x 1)": (
        "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=1",
        "model.num_key_value_heads=1", "model.head_dim=16", "model.intermediate_size=16",
    ),
}  # fmt: skip
CACHES = {"cached ids": "tokens", "from text": "lengths"}


def main() -> None:
    options = parse_arguments()
    report = Report("data_wait", "Waiting for data", options.results)
    with tempfile.TemporaryDirectory(prefix="molgen-data-wait-") as folder:
        workplace = Workplace(Path(folder), options.threads)
        rows = [
            (f"{model}, {cache}, workers: {workers}", *measure(workplace, model, cache, workers, options.steps))
            for model in MODELS
            for cache in CACHES
            for workers in (0, 1)
        ]
    report.table(("", "step, ms", "tokens/s", "waiting", "waiting, ms per step"), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, help="default: every usable core")
    add_results_option(parser)
    return parser.parse_args()


def measure(workplace: Workplace, model: str, cache: str, workers: int, steps: int) -> tuple[str, ...]:
    """The figures of one run, over all its steps but the first."""
    print(f"{model}, {cache}, workers: {workers}", file=sys.stderr, flush=True)
    settings = [
        *TRAINING_ONLY, *MODELS[model], f"data.cache={CACHES[cache]}", f"data.num_workers={workers}",
        f"training.steps={steps}", f"metrics.log_freq={steps}", "scheduler=constant",  # rows of step 1 and the last
    ]  # fmt: skip
    name = f"{model}-{cache}-{workers}".translate(str.maketrans("", "", " ()"))
    row = workplace.train(name, settings)[-1]
    step_ms, waiting = 1000 * row["step_seconds"], row["data_wait_frac"]
    return f"{step_ms:.1f}", f"{row['tokens_per_second']:,.0f}", f"{waiting:.2%}", f"{step_ms * waiting:.2f}"


if __name__ == "__main__":
    main()

"""Qwen3-0.6B on a CUDA device: the application beside the Hugging Face Trainer and a plain FSDP2 loop, and the limits.

    python benchmarks/gpu.py [--minutes 9] [--only NAME ...]     # on a GPU
    python benchmarks/gpu.py --dry                               # elsewhere: every row made ready, no kernel run
    python benchmarks/gpu.py --device cpu --tiny                 # every row for real with a model for a CPU

Every row is a process of its own on the same packed sequences of the bundled sample (151,936 rows of embedding; no
network), `--tokens` positions per step, AdamW and clipping; the first interval, in which things compile, is not
counted. Rows come in order of importance and stand in the result as soon as they are measured; those for which
`--minutes` leaves no time say so. MFU: the FLOPs that the counted tokens need (the head included, attention causal,
no recomputation) over the data sheet's dense bfloat16 peak, for float8 rows too; beside it the share of the bfloat16
matmul that was measured. Padded rows count the tokens that are not padding.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from harness.application import TRAINING_ONLY, Workplace, finished
from harness.equal_data import peer_sizes, write_packed, write_units
from harness.peer_process import PEERS, Measured, Work, lacks, run_peer
from harness.report import Report, add_results_option

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.metrics.throughput import peak_flops
from molgen_pretrain.model.flops import flops_per_token

LEAST_SECONDS = 40.0  # that a row is tried with


@dataclass(frozen=True)
class Row:
    trainer: str  # ours, hf_trainer or fsdp_loop
    seq_len: int
    compile: bool = False
    float8: str = "none"
    padded: bool = False
    times_tokens: int = 1  # a larger batch than the others'

    @property
    def name(self) -> str:
        words = {"ours": "ours", "hf_trainer": "HF Trainer", "fsdp_loop": "HF + FSDP2 loop"}[self.trainer]
        details = [
            *(["one molecule per row, padded"] if self.padded else []),
            "bf16" if self.float8 == "none" else f"fp8 {self.float8}",
            "compiled" if self.compile else "eager",
            *([f"{self.times_tokens}x the batch"] if self.times_tokens > 1 else []),
        ]
        return f"{words}, {', '.join(details)}"


ROWS = (
    Row("ours", 4096, compile=True),
    Row("hf_trainer", 4096),
    Row("ours", 2048, compile=True),
    Row("hf_trainer", 2048),
    Row("hf_trainer", 2048, padded=True),
    Row("fsdp_loop", 4096),
    Row("ours", 4096),
    Row("ours", 4096, compile=True, float8="rowwise"),
    Row("ours", 4096, compile=True, float8="tensorwise"),
    Row("ours", 4096, compile=True, times_tokens=2),
    Row("fsdp_loop", 2048),
    Row("ours", 2048),
    Row("hf_trainer", 4096, compile=True),
    Row("hf_trainer", 4096, padded=True),
    Row("ours", 2048, compile=True, float8="rowwise"),
    Row("fsdp_loop", 4096, compile=True),
)
COLUMNS = (
    "", "seq_len", "tokens/s", "TFLOP/s", "MFU", "of the matmul limit", "peak memory, GiB", "ours, compiled, is", "",
)  # fmt: skip


def main() -> None:
    options = parse_arguments()
    rows = [row for number, row in enumerate(ROWS, 1) if not options.only or number in options.only]
    with tempfile.TemporaryDirectory(prefix="molgen-gpu-") as folder:
        bench = Bench(Workplace(Path(folder), device=options.device), options)
        if options.dry:
            sys.exit(bench.dry(rows))
        results = None if options.tiny else options.results
        report = Report("gpu", "Training on a GPU: " + ("a tiny model" if options.tiny else "Qwen3-0.6B"), results)
        report.add(f"{options.tokens:,} positions per step; rates over {options.intervals} x {options.every} steps")
        report.table(COLUMNS, bench.table(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="no row begins or goes on after that")
    numbers = "\n".join(f"{number} = {row.name}, seq_len {row.seq_len}" for number, row in enumerate(ROWS, 1))
    parser.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help=f"these rows alone:\n{numbers}")
    parser.add_argument("--tokens", type=int, default=16384, help="positions per step (default: %(default)s)")
    parser.add_argument("--every", type=int, default=10, help="steps of an interval (default: %(default)s)")
    parser.add_argument("--intervals", type=int, default=2, help="that are timed (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short sequences; kept nowhere")
    parser.add_argument("--dry", action="store_true", help="a step of each row on fake tensors; nothing is kept")
    add_results_option(parser)
    options = parser.parse_args()
    if options.tiny:
        options.tokens, options.every = 512, 2
    return options


class Bench:
    """All rows on one device, until time is up."""

    def __init__(self, workplace: Workplace, options: argparse.Namespace) -> None:
        self.workplace = workplace
        self.options = options
        self.deadline = time.monotonic() + 60 * options.minutes
        self.matmul_limit: float | None = None  # FLOP/s
        self.peak: float | None = None
        self.ours: dict[int, float] = {}  # tokens/s by seq_len

    def table(self, rows: list[Row]) -> Iterator[tuple[object, ...]]:
        """The limits, then a line for each row when it is done."""
        yield from self._limits()
        for row in rows:
            left = self.deadline - time.monotonic()
            reason = "no time left" if left < LEAST_SECONDS else self._obstacle(row)
            if reason:
                yield self._line(row, None, f"left out: {reason}")
                continue
            try:
                yield self._line(row, self._measure(row, left), "")
            except subprocess.TimeoutExpired:
                yield self._line(row, None, "stopped: time was up")
            except RuntimeError as error:
                print(error, file=sys.stderr)
                words = str(error)
                short = "out of memory" if "out of memory" in words else words.strip().splitlines()[-1][:100]
                yield self._line(row, None, f"failed: {short}")

    def dry(self, rows: list[Row]) -> int:
        """Make each row ready and take a step of its model on fake tensors. Returns an exit code."""
        from harness.dry import fake_step_of_ours, fake_step_of_transformers

        failures = 0
        for row in rows:
            cfg = self._config(row)
            try:
                if row.trainer == "ours":
                    parameters = fake_step_of_ours(cfg)
                else:
                    parameters = fake_step_of_transformers(peer_sizes(cfg), self._batch(row), self._seq_len(row))
                obstacle = self._obstacle(row)
                state = f"ready, {parameters:,} parameters" + (f"; but {obstacle}" if obstacle else "")
            except Exception as error:  # noqa: BLE001 - each row reports for itself
                failures += 1
                state = f"NOT READY: {type(error).__name__}: {error}"
            print(f"{row.name}, batch {self._batch(row)} x {self._seq_len(row)}: {state}", flush=True)
        return 1 if failures else 0

    def _limits(self) -> Iterator[tuple[object, ...]]:
        spec = {"device": self.options.device, "size": 512, "copy_mib": 16}
        if not self.options.tiny:
            spec.update(size=8192, copy_mib=4096)
        output = finished(
            [sys.executable, str(PEERS / "device_limits.py"), json.dumps(spec)], self.workplace.environment()
        )
        found = json.loads(output.splitlines()[-1])
        limits = found["limits"]
        self.matmul_limit = limits["bf16 matmul"] * 1e12
        self.peak = peak_flops(found["name"], "bfloat16")
        for kind, value in limits.items():
            if kind == "copy":
                yield f"limit: {kind}, measured", *[""] * 7, f"{value:,.0f} GB/s, read and written"
            else:
                share = "" if self.peak is None else f"{value * 1e12 / self.peak:.1%}"
                yield f"limit: {kind}, measured", "", "", f"{value:,.0f}", share, "", "", "", ""

    def _measure(self, row: Row, timeout_seconds: float) -> Measured:
        print(f"{row.name}, seq_len {self._seq_len(row)}", file=sys.stderr, flush=True)
        overrides = self._overrides(row)
        if row.trainer == "ours":
            number = len(list(self.workplace.folder.glob("runs/*")))
            steps = self.workplace.train(f"row-{number}", overrides, timeout_seconds=timeout_seconds)
            # Rows of steps 1, every, 2 * every, ...: the first two hold what is not timed.
            return Measured([row["tokens_per_second"] for row in steps[2:]], steps[-1]["memory_gib"], 0.0)
        cfg = compose_run(overrides)
        packed = self.workplace.folder / f"packed-{self._seq_len(row)}.safetensors"
        units = self.workplace.folder / "units.safetensors"
        if row.padded and not units.exists():
            write_units(units, overrides)
        if not row.padded and not packed.exists():
            write_packed(packed, overrides, cfg.training.steps)
        work = Work(
            sizes=peer_sizes(cfg),
            dtype="bfloat16",
            batch=self._batch(row),
            seq_len=self._seq_len(row),
            steps=cfg.training.steps,
            every=self.options.every,
            tokenizer=cfg.data.tokenizer,
            compile=row.compile,
            workers=cfg.data.num_workers,
            device=self.options.device,
        )
        work = replace(work, units=str(units)) if row.padded else replace(work, packed=str(packed))
        return run_peer(row.trainer, work, self.workplace, timeout_seconds=timeout_seconds)

    def _line(self, row: Row, measured: Measured | None, note: str) -> tuple[object, ...]:
        seq_len = self._seq_len(row)
        if measured is None:
            return row.name, seq_len, *[""] * 6, note
        speed = median(measured.tokens_per_second)
        ratio = f"{self.ours[seq_len] / speed:.2f}x" if seq_len in self.ours else ""
        if row == Row("ours", row.seq_len, compile=True):
            self.ours[seq_len] = speed
        memory = f"{measured.memory_gib:.1f}"
        if row.padded:  # shorter rows need other FLOPs per token
            return row.name, seq_len, f"{speed:,.0f}", "", "", "", memory, ratio, note
        flops = speed * flops_per_token(self._config(row).model, seq_len)
        mfu = "" if self.peak is None else f"{flops / self.peak:.1%}"
        share = "" if self.matmul_limit is None else f"{flops / self.matmul_limit:.1%}"
        return row.name, seq_len, f"{speed:,.0f}", f"{flops / 1e12:,.1f}", mfu, share, memory, ratio, note

    def _obstacle(self, row: Row) -> str | None:
        """Why a row cannot be measured here."""
        if row.float8 != "none":
            return "float8 needs a GPU" if self.options.device == "cpu" else lacks(sys.executable, "torchao")
        return lacks(sys.executable, "accelerate") if row.trainer == "hf_trainer" else None

    def _config(self, row: Row) -> RunConfig:
        return compose_run(self._overrides(row))

    def _overrides(self, row: Row) -> list[str]:
        every = self.options.every
        model = ["model=qwen3_0_6b", "data.embedding_rows=151936"]
        tiny = ["model=qwen3_nano", "model.num_hidden_layers=2", "model.hidden_size=64", "data.embedding_rows=512"]
        return [
            *TRAINING_ONLY,
            *(tiny if self.options.tiny else model),
            "parallelism=fsdp",
            f"parallelism.compile={str(row.compile).lower()}",
            f"training.float8={row.float8}",
            f"training.seq_len={self._seq_len(row)}",
            f"training.local_batch_size={self._batch(row)}",
            f"training.steps={every * (1 + self.options.intervals)}",
            "training.dtype=bfloat16",
            f"training.device={self.options.device}",
            "optimizer.lr=3e-4",
            "scheduler=constant",
            "data.num_workers=1",
            f"metrics.log_freq={every}",
            f"paths.cache={self.workplace.folder / 'cache'}",
        ]

    def _seq_len(self, row: Row) -> int:
        return row.seq_len // 16 if self.options.tiny else row.seq_len

    def _batch(self, row: Row) -> int:
        return max(1, row.times_tokens * self.options.tokens // self._seq_len(row))


if __name__ == "__main__":
    main()

"""Train step on a CPU: the application beside the Hugging Face Trainer and TorchTitan, on the same model and data.

    python benchmarks/train_step.py [--only equal-8k-bf16 ...] [--rounds 2] [--steps 3] [--titan-python PATH]

Every trainer runs its own loop in a fresh process with the same number of threads, no data workers, AdamW and
clipping; in each round all take a turn, so that they meet the same neighbours. Tokens are those that are trained on:
padding never counts. Rates are medians over the steps of all rounds without the first of each process.

- equal: all train on the same packed sequences of the bundled sample, so what differs is the loop, the loss and the
  block. "ours, compact" is the same run with the 384 rows that the sample's tokenizer needs instead of Qwen3's 151,936.
- useful: the peer gets the same molecules one per row and pads them as its default collator does, to the longest of
  a batch; the application packs them, with data.document_mask, so that on both sides a molecule sees itself alone.
  Rows per batch and most tokens per row are the same.

TorchTitan is measured where `--titan-python` (default: this Python) has it, the Trainer where accelerate is installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness.application import TRAINING_ONLY, Workplace
from harness.equal_data import peer_sizes, write_packed, write_units
from harness.peer_process import Measured, Work, lacks, run_peer
from harness.report import Report, add_results_option

from molgen_pretrain.config.compose import compose_run

FULL, SMALL, COMPACT = 151_936, 8_192, 384
# 25 M parameters in its blocks: with a compact embedding the model is one of 30 M.
BODY = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    "intermediate_size": 1536,
}  # fmt: skip
OURS, OURS_COMPACT, TRAINER, TITAN = "ours", "ours, compact", "HF Trainer", "TorchTitan"


@dataclass(frozen=True)
class Case:
    rows: int
    dtype: str
    target: float
    batch: int = 4
    seq_len: int = 512
    padded: bool = False
    sides: tuple[str, ...] = (OURS, TRAINER, TITAN)
    compact_target: float | None = None

    def describe(self) -> str:
        data = "one molecule per row, padded by the peer" if self.padded else "equal packed batches"
        return f"{data}, batch {self.batch} x {self.seq_len}, {self.rows:,} rows, {self.dtype}"


WITH_COMPACT = (OURS, OURS_COMPACT, TRAINER, TITAN)
CASES = {
    "equal-8k-fp32": Case(SMALL, "float32", 1.0),
    "equal-8k-bf16": Case(SMALL, "bfloat16", 1.0),
    "equal-152k-fp32": Case(FULL, "float32", 1.15, sides=WITH_COMPACT, compact_target=3.0),
    "equal-152k-bf16": Case(FULL, "bfloat16", 1.15, sides=WITH_COMPACT, compact_target=3.0),
    "useful-152k-bf16": Case(
        FULL, "bfloat16", 2.0, 8, 1024, padded=True, sides=(OURS, OURS_COMPACT, TRAINER), compact_target=3.0
    ),
    "useful-8k-bf16": Case(SMALL, "bfloat16", 2.0, 8, 1024, padded=True, sides=(OURS, TRAINER)),
}


def main() -> None:
    options = parse_arguments()
    peers = {TRAINER: sys.executable, TITAN: options.titan_python}
    absent = {TRAINER: lacks(peers[TRAINER], "accelerate"), TITAN: lacks(peers[TITAN], "torchtitan", "triton")}
    report = Report("train_step", "Train step on a CPU", options.results)
    with tempfile.TemporaryDirectory(prefix="molgen-train-step-") as folder:
        workplace = Workplace(Path(folder), options.threads)
        threads = workplace.environment()["OMP_NUM_THREADS"]
        body = f"hidden size {BODY['hidden_size']} x {BODY['num_hidden_layers']} layers"
        report.add(
            f"Qwen3, {body}; {threads} threads, no data workers; {options.rounds} rounds of {options.steps} steps"
        )
        for name in options.only:
            bench = Bench(name, CASES[name], workplace, options)
            report.table(TABLE, bench.table(peers, absent))
            if options.profile:
                report.add(bench.profile())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of a process after the first, which is not timed")
    parser.add_argument("--threads", type=int, help="default: every usable core")
    parser.add_argument("--titan-python", default=sys.executable, help="an interpreter that has torchtitan")
    parser.add_argument("--profile", action="store_true", help="also where the time of our steps goes")
    add_results_option(parser)
    return parser.parse_args()


TABLE = ("", "tokens/s", "lowest - highest step", "ours is", "target", "peak memory, GiB")


class Bench:
    """One case: its data, and a process of each side per round."""

    def __init__(self, name: str, case: Case, workplace: Workplace, options: argparse.Namespace) -> None:
        self.name = name
        self.case = case
        self.workplace = workplace
        self.rounds = options.rounds
        self.steps = options.steps + 1

    def overrides(self, rows: int) -> list[str]:
        case = self.case
        return [
            *TRAINING_ONLY,
            *(f"model.{key}={value}" for key, value in BODY.items()),
            f"data.embedding_rows={rows}",
            f"training.seq_len={case.seq_len}",
            f"training.local_batch_size={case.batch}",
            f"training.steps={self.steps}",
            f"training.dtype={case.dtype}",
            f"data.document_mask={case.padded}",
            "optimizer.lr=3e-4",
            "scheduler=constant",
            "metrics.log_freq=1",
            f"paths.cache={self.workplace.folder / 'cache'}",
        ]

    def table(self, pythons: dict[str, str], absent: dict[str, str | None]) -> list[tuple[object, ...]]:
        """The rows of this case's table."""
        work = self._peer_work()
        sides = [side for side in self.case.sides if not absent.get(side)]
        found: dict[str, list[Measured]] = {side: [] for side in sides}
        for number in range(self.rounds):
            for side, results in found.items():
                print(f"{self.name}: {side}, round {number + 1}", file=sys.stderr, flush=True)
                if side in pythons:
                    peer = {TRAINER: "hf_trainer", TITAN: "titan"}[side]
                    results.append(run_peer(peer, work, self.workplace, python=pythons[side]))
                else:
                    results.append(self._ours(COMPACT if side == OURS_COMPACT else self.case.rows, number))
        rows = [(f"**{self.case.describe()}**", "", "", "", "", ""), *(self._row(side, found) for side in sides)]
        return rows + [
            (side, f"left out: {absent[side]}", "", "", "", "") for side in self.case.sides if absent.get(side)
        ]

    def profile(self) -> str:
        """The summary that a run with profiled steps leaves."""
        name = f"{self.name}-profile"
        self.workplace.train(name, [*self.overrides(self.case.rows), f"training.profile_steps=[2,{self.steps}]"])
        tables = sorted((self.workplace.run_folder(name) / "profile").glob("*.txt"))
        return "\n".join(f"```text\n{table.read_text().rstrip()}\n```" for table in tables)

    def _peer_work(self) -> Work:
        case, folder = self.case, self.workplace.folder
        overrides = self.overrides(case.rows)
        cfg = compose_run(overrides)
        path = folder / f"{self.name}.safetensors"
        write = write_units(path, overrides) if case.padded else write_packed(path, overrides, self.steps)
        return Work(
            sizes=peer_sizes(cfg),
            dtype=case.dtype,
            batch=case.batch,
            seq_len=case.seq_len,
            steps=self.steps,
            every=1,
            tokenizer=cfg.data.tokenizer,
            **{"units" if case.padded else "packed": str(write)},
        )

    def _ours(self, rows: int, number: int) -> Measured:
        steps = self.workplace.train(f"{self.name}-{rows}-{number}", self.overrides(rows))
        rates = [step["tokens_per_second"] for step in steps[1:]]
        return Measured(rates, steps[-1]["memory_gib"], 0.0)

    def _row(self, side: str, found: dict[str, list[Measured]]) -> tuple[object, ...]:
        speed = {name: median(rates_of(results)) for name, results in found.items()}
        rates = rates_of(found[side])
        is_ours = side in (OURS, OURS_COMPACT)
        ratio = "" if is_ours else f"{speed[OURS] / speed[side]:.2f}x"
        target = "" if is_ours else f">= {self.case.target:g}"
        if side == TRAINER and OURS_COMPACT in speed:
            ratio += f" (compact: {speed[OURS_COMPACT] / speed[side]:.1f}x)"
            target += f" ({self.case.compact_target:g})"
        memory = max(result.memory_gib for result in found[side])
        return side, f"{speed[side]:,.0f}", f"{min(rates):,.0f} - {max(rates):,.0f}", ratio, target, f"{memory:.2f}"


def rates_of(results: list[Measured]) -> list[float]:
    return [rate for result in results for rate in result.tokens_per_second]


if __name__ == "__main__":
    main()

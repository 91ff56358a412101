"""Kills a run again and again, breaks its checkpoints and fills its disk, and compares what comes out.

    python benchmarks/chaos.py [--rounds 60] [--minutes 15] [--seed 0]

A tiny run saves every few steps, in turn synchronously and asynchronously. Each round starts it once more with the
same command and SIGKILLs it: at any moment, inside a save, or inside a deletion; some rounds fill the disk (a small
tmpfs where it can be mounted) before that, and after some kills files of a checkpoint are truncated,
flipped or deleted. Every start must go on from the newest undamaged commit, and every run that reaches its end must
have, bit for bit, the weights and losses of one that was never interrupted. Exit code 1 where one does not.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from molgen_pretrain.checkpoint.commit import find_problems, read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged
from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.metrics.rows import read_rows

STEPS, INTERVAL, KEPT = 240, 4, 3
OVERRIDES = [
    f"training.steps={STEPS}", "training.seq_len=128", "training.local_batch_size=2", "training.dtype=float32",
    "model.hidden_size=128", "model.num_hidden_layers=2", "model.num_attention_heads=4", "model.num_key_value_heads=2",
    "model.head_dim=32", "model.intermediate_size=256", "validation.enable=false", "metrics.log_freq=1",
    "metrics.tensorboard=false", "metrics.progress_bar=false", "scheduler.checkpoints=[80,160,240]",
    f"checkpoint.interval={INTERVAL}", f"checkpoint.keep_latest_k={KEPT}", "checkpoint.max_failures=100000",
    "checkpoint.hf_export=never",
]  # fmt: skip
DISK_MIB = 96  # the checkpoints of a run take about 30
START_SECONDS, ROUND_SECONDS = 120.0, 60.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["molgen_pretrain.__main__", "molgen_pretrain.training.runner"])


class ChaosFailure(Exception):
    """A promise that was not kept."""


class Run:
    """One run directory and the processes that train in it, one after the other."""

    def __init__(self, runs: Path, cache: Path, name: str, mode: str) -> None:
        self.root = runs / name
        self.log = cache / f"{name}.log"
        own = {"run_name": name, "paths.runs": runs, "paths.cache": cache, "checkpoint.async_mode": mode}
        self._overrides = [*OVERRIDES, *(f"{key}={value}" for key, value in own.items())]
        self.layout = CheckpointLayout(self.root / "checkpoint")

    def start(self) -> multiprocessing.process.BaseProcess:
        self.log.write_text("")
        process = _processes.Process(target=train, args=(self._overrides, str(self.log)))
        process.start()
        return process

    def newest_sound(self) -> int:
        """The step that a start has to go on from; 0: from scratch."""
        return max((step for step in self.layout.committed_steps() if not self.problems(step)), default=0)

    def problems(self, step: int) -> list[str]:
        folder = self.layout.folder(step)
        try:
            return find_problems(folder, read_manifest(folder))
        except CheckpointDamaged as damage:
            return damage.problems

    def started_at(self) -> int | None:
        """The step that the log says training goes on from; None before it does."""
        match = re.search(r"start: (from scratch|after step (\d+))", self.log.read_text())
        return int(match.group(2) or 0) if match else None

    def last_step(self) -> int:
        file = self.root / "metrics.jsonl"
        return max((int(row["step"]) for row in read_rows(file)), default=0) if file.exists() else 0

    def result(self) -> tuple[str, list[tuple[object, ...]]]:
        """A hash of everything that the last checkpoint's shards hold, and every step's numbers."""
        files = sorted(self.layout.folder(STEPS).glob("*.safetensors"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        columns = ("step", "loss", "grad_norm", "lr", "tokens", "epoch")
        return digest, [tuple(row[column] for column in columns) for row in read_rows(self.root / "metrics.jsonl")]


def train(overrides: list[str], log: str) -> None:
    """In a process of its own, forked from one that has the libraries loaded."""
    from molgen_pretrain.__main__ import main

    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["molgen-pretrain", *overrides]
    main()


class Chaos:
    """The rounds on one run until it has reached its end."""

    def __init__(self, run: Run, dice: random.Random, counts: Counter[str], disk: Path | None) -> None:
        self.run = run
        self.dice = dice
        self.counts = counts
        self.disk = disk

    def round(self) -> bool:
        """Start, disturb, kill. Returns whether the run has reached its end."""
        expected, reached = self.run.newest_sound(), self.run.last_step()
        newest = max(self.run.layout.committed_steps(), default=0)
        process = self.run.start()
        self._wait_until(lambda: self.run.started_at() is not None, process, START_SECONDS)
        started = self.run.started_at()
        if started != expected:
            raise ChaosFailure(f"went on from step {started}, not from {expected}:\n{self.run.log.read_text()}")
        self.counts["rounds"] += 1
        self.counts["fallbacks to an older checkpoint"] += expected < newest
        self.counts["steps redone"] += max(0, reached - expected)
        moment = self.dice.choices(
            ("any moment", "inside a save", "inside a deletion", "disk full"), weights=(40, 35, 15, 10)
        )[0]
        with self._full_disk(moment == "disk full", process):
            self._wait_for(moment, process)
        ended = process.exitcode == 0
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if moment == "disk full" and process.exitcode == 1:
            # The last save has to work: without room for it the run says so, and goes on when started again.
            self.counts["ends for want of room"] += 1
            return False
        if not ended and process.exitcode != -signal.SIGKILL:
            raise ChaosFailure(f"exit code {process.exitcode}:\n{self.run.log.read_text()[-2000:]}")
        self.counts["ends reached"] += ended
        if not ended:
            self._look_and_damage()
        return ended

    def _wait_for(self, moment: str, process: multiprocessing.process.BaseProcess) -> None:
        if moment in ("any moment", "disk full"):
            self._wait_until(lambda: False, process, self.dice.uniform(0.0, 1.5))
            return
        mark = "tmp" if moment == "inside a save" else "deleted"
        skipped = self.dice.randrange(3)  # not always the first one after a start
        while process.exitcode is None and skipped >= 0:
            self._wait_until(lambda: self._under_way(mark), process, ROUND_SECONDS)
            if skipped:
                self._wait_until(lambda: not self._under_way(mark), process, ROUND_SECONDS)
            skipped -= 1
        time.sleep(self.dice.choice((0.0, 0.0, 0.002, 0.005, 0.01, 0.02)))

    def _under_way(self, mark: str) -> bool:
        return any(f".{mark}-" in entry.name for entry in self.run.layout.leftovers())

    def _wait_until(
        self, condition: Callable[[], bool], process: multiprocessing.process.BaseProcess, seconds: float
    ) -> None:
        end = time.monotonic() + seconds
        while process.exitcode is None and not condition() and time.monotonic() < end:
            time.sleep(0.001)

    @contextmanager
    def _full_disk(self, wanted: bool, process: multiprocessing.process.BaseProcess) -> Iterator[None]:
        """While entered nothing can be written, and saves have failed."""
        if not wanted or self.disk is None:
            yield
            return
        ballast = self.disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(2**16)):
                    pass
            except OSError:
                pass
        failed = "goes on and saves again at the next checkpoint"
        self._wait_until(lambda: failed in self.run.log.read_text(), process, 20.0)
        if failed in self.run.log.read_text():
            self.counts["rounds with a full disk"] += 1
        if self.dice.random() < 0.5:
            ballast.unlink()  # the run finds room again before it is killed
        yield
        ballast.unlink(missing_ok=True)

    def _look_and_damage(self) -> None:
        """Count what the kill hit; then, sometimes, break a file of any commit but the oldest."""
        self.counts["kills inside a save"] += self._under_way("tmp")
        self.counts["kills inside a deletion"] += self._under_way("deleted")
        sound = [step for step in self.run.layout.committed_steps() if not self.run.problems(step)]
        if len(sound) < 2 or self.dice.random() > 0.4:
            return
        files = sorted(self.run.layout.folder(self.dice.choice(sound[1:])).iterdir())
        file = self.dice.choice(files)
        kind = self.dice.choice(("truncated", "flipped", "deleted"))
        content = bytearray(file.read_bytes())
        if kind == "deleted":
            file.unlink()
        elif kind == "truncated":
            file.write_bytes(content[: self.dice.randrange(len(content))])
        else:
            content[self.dice.randrange(len(content))] ^= 1 << self.dice.randrange(8)
            file.write_bytes(content)
        self.counts[f"files {kind}"] += 1


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of DISK_MIB at `folder`; None, with a plain folder, where it may not be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="at least so many (default: 60)")
    parser.add_argument("--minutes", type=float, default=15, help="and no longer than this (default: 15)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.monotonic()
    counts: Counter[str] = Counter()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="molgen-chaos-") as name, small_disk(Path(name) / "runs") as disk:
        runs, cache = Path(name) / "runs", Path(name) / "cache"
        cache.mkdir()
        reference = Run(runs, cache, "reference", "sync")
        process = reference.start()
        process.join()
        if process.exitcode:
            print(reference.log.read_text())
            return 1
        wanted = reference.result()
        shutil.rmtree(reference.root)
        try:
            while counts["rounds"] < options.rounds and time.monotonic() - began < 60 * options.minutes:
                life(runs, cache, dice, counts, disk, wanted)
        except ChaosFailure as failure:
            print(f"seed {options.seed}, round {counts['rounds']}: {failure}")
            return 1
    report(counts, time.monotonic() - began, options.seed, disk is not None)
    return 0


def life(
    runs: Path, cache: Path, dice: random.Random, counts: Counter[str], disk: Path | None,
    wanted: tuple[str, list[tuple[object, ...]]],
) -> None:  # fmt: skip
    """One run from its first start to its end, through as many kills as it takes."""
    mode = ("sync", "async")[counts["ends reached"] % 2]
    run = Run(runs, cache, f"life-{counts['ends reached']}", mode)
    chaos = Chaos(run, dice, counts, disk)
    before = counts["rounds"]
    while not chaos.round():
        pass
    counts[f"rounds of {mode} saves"] += counts["rounds"] - before
    digest, rows = run.result()
    if digest != wanted[0]:
        raise ChaosFailure(f"{run.root.name}: the last checkpoint differs from the uninterrupted run's")
    if rows != wanted[1]:
        different = next(a for a, b in zip(rows, wanted[1], strict=False) if a != b)
        raise ChaosFailure(f"{run.root.name}: the rows differ from the uninterrupted run's, first {different}")
    shutil.rmtree(run.root)


def report(counts: Counter[str], seconds: float, seed: int, has_disk: bool) -> None:
    print(f"seed {seed}, {seconds / 60:.1f} minutes; a run has {STEPS} steps and saves every {INTERVAL}")
    if not has_disk:
        print("no tmpfs could be mounted: the disk was never full")
    print("\n| what | how often |\n|---|---|")
    for what, count in counts.items():
        print(f"| {what} | {count} |")
    print(f"| ends that differ from the uninterrupted run's | 0 of {counts['ends reached']} |")


if __name__ == "__main__":
    sys.exit(main())

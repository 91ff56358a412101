"""How long a save holds up training, synchronous against asynchronous, and what it costs beside that.

    python benchmarks/checkpoint_stall.py [--repeats 5] [--folder .]

A Qwen3 of 100 M parameters with AdamW's state (1.2 GB) on a CPU. Synchronous save, asynchronous save, quiet steps,
load, a plain copy with fsync and checksums of three kinds take turns in one process, so that all meet the same disk
and neighbours. Writes up to three checkpoints below --folder and removes them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import statistics
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import xxhash
from harness.report import Report, add_results_option

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.commit import find_problems, read_manifest
from molgen_pretrain.checkpoint.files import CHUNK_BYTES
from molgen_pretrain.checkpoint.finite import all_finite
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, count_parameters, materialize

ARCH = Qwen3Arch(
    vocab_size=32768,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=2048,
)
COPY_CHUNK_BYTES = 16 * 2**20

Times = dict[str, list[float]]


class Training:
    """A model that can take a step."""

    def __init__(self, tokens: int) -> None:
        self.model: Qwen3ForPretraining = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0))
        materialize(self.model, device=torch.device("cpu"), seed=0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.batch = torch.randint(0, ARCH.vocab_size, (1, tokens))

    def step(self) -> None:
        self.model(self.batch, self.batch).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    options = parse_arguments()
    training = Training(options.tokens)
    training.step()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoint-stall-") as folder:
        times, peaks, size = measure(training, Path(folder), options.repeats)
    report = Report("checkpoint_stall", "How long a checkpoint holds up training", options.results)
    parameters = f"{count_parameters(training.model) / 1e6:.0f} M parameters"
    report.add(f"{parameters}, {size / 1e9:.2f} GB; {torch.get_num_threads()} torch threads")
    report.table(("", "median s", "range s", "GB/s"), table(times, size))
    report.add(conclusions(times, peaks))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    parser.add_argument("--tokens", type=int, default=16, help="per step")
    add_results_option(parser)
    return parser.parse_args()


def measure(training: Training, folder: Path, repeats: int) -> tuple[Times, list[float], int]:
    """Seconds of everything, by name; peak memory in GiB after each round; bytes of the file of tensors."""
    for name in ("sync", "async"):
        (folder / name).mkdir()
    sync = Checkpointer(folder / "sync", keep_latest_k=1)
    background = Checkpointer(folder / "async", keep_latest_k=1, asynchronous=True)
    times: Times = defaultdict(list)
    peaks: list[float] = []
    state = {"model": training.model, "optimizer": training.optimizer}
    for step in range(1, repeats + 2):
        first = " (first)" if step == 1 else ""  # it allocates: shown apart
        saved = sync.save(step, **state, state={})
        times[f"sync stall{first}"].append(sync.last_stall_seconds)
        tensors = saved / "rank-00000.safetensors"
        with timed(times["quiet step"]):
            training.step()
        with timed(times["copy"]):
            copy_file(tensors, folder / "copy")
        (folder / "copy").unlink()
        with timed(times["quiet step"]):
            training.step()
        manifest = background.save(step, **state, state={}) / "manifest.json"
        times[f"async stall{first}"].append(background.last_stall_seconds)
        with timed(times["async until committed"]):
            while not manifest.exists():
                with timed(times["step while writing"]):
                    training.step()
        background.wait()
        with timed(times["verify"]):
            find_problems(saved, read_manifest(saved))
        with timed(times["fill"]):
            sync.load(step, **state, checksums=False)
        check_bytes(tensors, times)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return times, peaks, tensors.stat().st_size


def check_bytes(file: Path, times: Times) -> None:
    """What each kind of check costs for the bytes of a file, from memory, in the chunks of a save."""
    buffer = bytearray(CHUNK_BYTES)
    kinds = {
        "xxh3_128": xxhash.xxh3_128().update,
        "BLAKE2b": hashlib.blake2b(digest_size=16).update,
        "crc32": zlib.crc32,
    }
    numbers = torch.frombuffer(buffer, dtype=torch.float32)
    spent = dict.fromkeys([*kinds, "all finite"], 0.0)
    with open(file, "rb", buffering=0) as reader:
        while reader.readinto(buffer) == CHUNK_BYTES:
            for name, check in kinds.items():
                began = time.perf_counter()
                check(buffer)
                spent[name] += time.perf_counter() - began
            began = time.perf_counter()
            all_finite(numbers)
            spent["all finite"] += time.perf_counter() - began
    for name, seconds in spent.items():
        times[name].append(seconds)


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def copy_file(source: Path, target: Path) -> None:
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        while chunk := reader.read(COPY_CHUNK_BYTES):
            writer.write(chunk)
        os.fsync(writer.fileno())


def table(times: Times, size: int) -> list[tuple[str, ...]]:
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        speed = "" if "step" in name or name.startswith("async") else f"{size / 1e9 / median:.2f}"
        rows.append((name, f"{median:.3f}", f"{min(values):.3f} - {max(values):.3f}", speed))
    return rows


def conclusions(times: Times, peaks: list[float]) -> str:
    median = {name: statistics.median(values) for name, values in times.items()}
    stall = median["async stall"] / median["sync stall"]
    slower = median["step while writing"] / median["quiet step"]
    lines = [
        f"async / sync stall: {stall:.1%} (target: at most 20%), the first save, which allocates, apart",
        f"a step while the background writes takes {slower:.2f}x a quiet one",
        f"a synchronous save takes {median['sync stall'] / median['copy']:.2f}x a plain copy with fsync",
    ]
    if sys.platform == "linux":  # elsewhere ru_maxrss is in bytes
        lines.append(f"peak memory after rounds 1, 2 and the last: {peaks[0]:.2f}, {peaks[1]:.2f}, {peaks[-1]:.2f} GiB")
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    main()

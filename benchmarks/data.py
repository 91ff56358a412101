"""The data loader beside the stack that it replaces and beside what the machine can do at most.

    python benchmarks/data.py [--data PATH] [--tokenizer FOLDER] [--seq-lens 2048 4096]

Prints Markdown tables: sequences and tokens per second in both modes, with and without a worker; latency of the
first batch; packing; memory; and each target with what was measured. By default it uses the conformers and the
tokenizer of a `shared` folder beside the repository, where that is absent the bundled sample.

A figure and the limit that it is compared with are measured in turn, in one process where that is possible, and
of several rounds the best of each counts: on a machine that others use too, interference only ever slows down.
Rates are by the clock; those "by CPU time" count the seconds that the busier of main process and worker computed,
which is the rate that two free cores would give. The limits, both on one core:

- memory copy: for each micro-batch, in training order, two fresh int64 arrays; the units' slices of the mapped
  token cache into the first, that one shifted by a token into the second. Their places are known beforehand;
  nothing is planned, no separator or padding written.
- encode_batch: the tokenizer's `encode_batch_fast` on units whose text is ready; no file read, no id taken out of
  the result. With its own threads off (as in a loader's worker), and on but bound to one core, which is quicker.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SAMPLE = ROOT / "molgen_pretrain" / "sample"
HAS_SHARED = (SHARED / "data" / "conformers" / "train").is_dir()
DATA = SHARED / "data" / "conformers" / "train" if HAS_SHARED else SAMPLE / "train"
TOKENIZER = SHARED / "tokenizers" / "qwen3_custom" if HAS_SHARED else SAMPLE / "tokenizer"

POSITIONS = 16384  # of a micro-batch
COPIES = 6  # of the data, for a pass that lasts long beside the start of its processes
ROUNDS = 4
SECONDS = 1.5  # of each measurement within a round

# seq_len -> (tokens/s, packing) of the replaced loader on the shared data; one core, lookahead 100.
REPLACED = {2048: (1.11e6, 0.9710), 4096: (1.13e6, 0.9863)}


@dataclass
class Row:
    """One case: best rates of the loader and of its limit, and the last process's whole result."""

    mode: str
    seq_len: int
    workers: int
    load: dict[str, float]
    limit: dict[str, float]
    result: dict[str, Any]

    @property
    def by_cpu(self) -> float:
        """The part of the limit that is reached, both by CPU time."""
        return self.load["cpu"] / self.limit["cpu"]


def main() -> None:
    arguments = parse_arguments()
    if arguments.phase:
        print(json.dumps(PHASES[arguments.phase](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="molgen-data-") as cache:
        report(arguments, cache)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="tokens", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seq-len", type=int, default=2048, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def report(arguments: argparse.Namespace, cache: str) -> None:
    def measure(phase: str, environment: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        command = [sys.executable, __file__, "--phase", phase, "--cache", cache]
        options = {"data": arguments.data, "tokenizer": arguments.tokenizer, **options}
        command += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        run = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        return json.loads(run.stdout)

    cores = len(os.sched_getaffinity(0))
    print(f"`{arguments.data.parent.name}/{arguments.data.name}`, tokenizer `{arguments.tokenizer.name}`; ", end="")
    print(f"{cores} cores, {platform.machine()}, Python {platform.python_version()}\n")
    encodes = [measure("encode")]
    with ThreadPoolExecutor(cores) as threads:
        together = list(threads.map(lambda core: measure("encode", core=core), range(cores)))
    cold = measure("first", workers=1)
    with tempfile.TemporaryDirectory(prefix="molgen-data-copies-") as copies:
        for number in range(COPIES):
            shutil.copytree(arguments.data, Path(copies) / str(number))
        larger = measure("first", workers=1, data=f"{copies}/*/*.jsonl")
    warm = {workers: measure("first", workers=workers) for workers in (0, 1)}
    cases = [(seq_len, workers) for seq_len in arguments.seq_lens for workers in (0, 1)]
    lengths = {case: [] for case in cases}
    for _ in range(2):
        for seq_len, workers in cases:
            lengths[seq_len, workers].append(measure("load", mode="lengths", workers=workers, seq_len=seq_len))
        encodes.append(measure("encode"))
    encode = {threads: best([found[threads] for found in encodes]) for threads in encodes[0]}
    rows = []
    for seq_len, workers in cases:
        result = measure("load", mode="tokens", workers=workers, seq_len=seq_len)
        rows.append(Row("tokens", seq_len, workers, best(result["load"]), best(result["copy"]), result))
    for (seq_len, workers), results in lengths.items():
        loads = [found for result in results for found in result["load"]]
        rows.append(Row("lengths", seq_len, workers, best(loads), encode["threads on"], results[-1]))
    packing = {seq_len: measure("packing", seq_len=seq_len) for seq_len in arguments.seq_lens}
    extras = measure("extras")
    baseline = measure("imports")
    print_rates(rows, encode)
    print_start(cold, warm)
    print_memory(rows, baseline)
    print_packing(packing)
    print_costs(packing, extras)
    print_targets(rows, packing)
    at_once = sum(found["threads on"]["wall"] for found in together)
    for name, result in (("cold pass", cold), (f"cold pass over {COPIES} copies", larger)):
        print_pass(name, result, encode["threads on"]["wall"] * cores, at_once, cores)


# What is measured, each in a process of its own.


class Meter:
    """Tokens per second, by the clock and by the CPU time of the busiest of this process and its workers."""

    def __init__(self) -> None:
        self._workers = [process.pid for process in multiprocessing.active_children() if process.pid]
        self._wall, self._cpu = time.perf_counter(), self._cpu_seconds()
        self.tokens = 0

    def goes_on(self) -> bool:
        return time.perf_counter() - self._wall < SECONDS

    def rates(self) -> dict[str, float]:
        busiest = max(now - then for now, then in zip(self._cpu_seconds(), self._cpu, strict=True))
        return {"wall": self.tokens / (time.perf_counter() - self._wall), "cpu": self.tokens / busiest}

    def _cpu_seconds(self) -> list[float]:
        ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in self._workers]
        return [time.process_time(), *(sum(map(int, pair)) / os.sysconf("SC_CLK_TCK") for pair in ticks)]


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(found[name] for found in rounds) for name in rounds[0]}


def open_dataset(arguments: argparse.Namespace, tokenizer: Any = None, **options: Any) -> Any:
    from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset

    return JsonlTaggedPackedDataset(
        **{
            "paths": arguments.data,
            "tokenizer": tokenizer or load_tokenizer(arguments),
            "seq_len": arguments.seq_len,
            "local_batch_size": max(POSITIONS // arguments.seq_len, 1),
            "cache_dir": arguments.cache,
            "cache": arguments.mode,
            **options,
        }
    )


def load_tokenizer(arguments: argparse.Namespace) -> Any:
    from molgen_pretrain.data.tokenizer import UnitTokenizer

    return UnitTokenizer.load(arguments.tokenizer)


def measure_first(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds to the opened data and to the first batch; imports not counted."""
    from molgen_pretrain.data.loader import build_loader

    tokenizer = load_tokenizer(arguments)
    start = time.perf_counter()
    dataset = open_dataset(arguments, tokenizer)
    opened = time.perf_counter()
    next(iter(build_loader(dataset, num_workers=arguments.workers)))
    first = time.perf_counter()
    summary = dataset.summary()
    encoded = summary.tokens - summary.units  # without separators
    return {"open": opened - start, "first": first - start, "tokens": encoded}


def measure_load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates through the loader, and of the memory copy in turn with it where there is a token cache."""
    from molgen_pretrain.data.loader import build_loader

    dataset = open_dataset(arguments)
    batches = iter(build_loader(dataset, num_workers=arguments.workers))
    for _ in islice(batches, 32):  # until the loader is under way
        pass

    def load() -> dict[str, float]:
        meter = Meter()
        while meter.goes_on():
            meter.tokens += sum(batch.tokens for batch in islice(batches, 4))
        return meter.rates()

    copy = memory_copy(dataset) if arguments.mode == "tokens" else None
    loads, copies = [], []
    for _ in range(ROUNDS if copy else 1):
        loads.append(load())
        if copy:
            copies.append(copy())
    workers = [process.pid for process in multiprocessing.active_children()]
    return {"load": loads, "copy": copies, "main": memory("self"), "workers": [memory(pid) for pid in workers if pid]}


def memory_copy(dataset: Any) -> Callable[[], dict[str, float]]:
    """The rates of the copy alone, see the head of this file."""
    import numpy as np

    [source] = dataset._corpus.sources
    cache = source.index.tokens
    micro_batches = []
    for packed in islice(dataset.packed(at_once=1), 1500):
        layout, starts = packed.layout, packed.starts
        places = (layout.places, layout.places + layout.kept, starts, starts + layout.kept)
        micro_batches.append((int(layout.kept.sum()), list(zip(*(array.tolist() for array in places), strict=True))))

    def copy() -> dict[str, float]:
        meter = Meter()
        while meter.goes_on():
            for count, units in micro_batches:
                inputs = np.empty(POSITIONS, dtype=np.int64)
                labels = np.empty(POSITIONS, dtype=np.int64)
                for place, place_end, start, end in units:
                    inputs[place:place_end] = cache[start:end]
                labels[:-1] = inputs[1:]
                meter.tokens += count
        return meter.rates()

    return copy


def measure_encode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of encode_batch_fast on one core, its own threads off and on."""
    from tokenizers import Tokenizer

    from molgen_pretrain.data.files import resolve_files
    from molgen_pretrain.data.units import parse_unit

    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[arguments.core]})
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    with resolve_files(arguments.data)[0].open("rb") as file:
        texts = [text for line in islice(file, 1000) if isinstance(text := parse_unit(line, 16), str)]
    found: dict[str, list[dict[str, float]]] = {"threads off": [], "threads on": []}
    for _ in range(2):
        for threads, rounds in found.items():
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads == "threads on" else "false"
            meter = Meter()
            while meter.goes_on():
                for start in range(0, len(texts), 100):
                    encoded = tokenizer.encode_batch_fast(texts[start : start + 100], add_special_tokens=False)
                    meter.tokens += sum(map(len, encoded))
            rounds.append(meter.rates())
    return {threads: best(rounds) for threads, rounds in found.items()}


def measure_packing(arguments: argparse.Namespace) -> dict[str, float]:
    """Non-padding share of two epochs, of best fit with 100 pending units, and what planning costs."""
    import numpy as np

    from molgen_pretrain.tools.data_packing import count_best_fit_sequences

    dataset = open_dataset(arguments)
    [source] = dataset._corpus.sources
    begin = time.process_time()
    sequences = [dataset.sequences_in_epoch(epoch) for epoch in (0, 1)]
    seconds = (time.process_time() - begin) / 2
    tokens = dataset.summary().tokens
    sizes = np.minimum(source.index.token_counts(np.arange(source.index.lines)), arguments.seq_len - 1) + 1
    best_fit = count_best_fit_sequences(np.random.default_rng(0).permutation(sizes), arguments.seq_len, 100)
    return {
        "packed": 2 * tokens / (sum(sequences) * arguments.seq_len),
        "best_fit": tokens / (best_fit * arguments.seq_len),
        "microseconds_per_unit": 1e6 * seconds / dataset.summary().units,
    }


def measure_extras(arguments: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per micro-batch of the token classes (in the worker) and the document mask (in the main process)."""

    def milliseconds(**options: bool) -> tuple[float, float]:
        dataset = open_dataset(arguments, **options)
        packed = list(islice(dataset.packed(at_once=4), 100))
        rounds = []
        for _ in range(ROUNDS):
            begin = time.process_time()
            groups = list(islice(dataset.packed(at_once=4), 100))
            middle = time.process_time()
            count = sum(1 for group in groups for _ in dataset.unpack(group))
            rounds.append((1e3 * (middle - begin) / count, 1e3 * (time.process_time() - middle) / count))
        del packed
        return min(packing for packing, _ in rounds), min(unpacking for _, unpacking in rounds)

    plain, masked, classified = milliseconds(), milliseconds(document_mask=True), milliseconds(token_classes=True)
    return {"mask": masked[1] - plain[1], "classes": sum(classified) - sum(plain), "plain": sum(plain)}


def measure_imports(arguments: argparse.Namespace) -> dict[str, Any]:
    from molgen_pretrain.data import dataset, loader  # noqa: F401

    return {"main": memory("self")}


def memory(process: int | str) -> dict[str, float]:
    """MiB resident: of the process's own, and of mapped files, which are shared and given back when needed."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: int(fields[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


PHASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "first": measure_first,
    "load": measure_load,
    "encode": measure_encode,
    "packing": measure_packing,
    "extras": measure_extras,
    "imports": measure_imports,
}


# What is printed.


def print_rates(rows: list[Row], encode: dict[str, dict[str, float]]) -> None:
    print("| mode | seq_len | workers | sequences/s | M tokens/s | of the limit | by CPU time | replaced loader x |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        rate, limit = row.load["wall"], row.limit["wall"]
        replaced = f"{rate / REPLACED[row.seq_len][0]:.2f}" if row.seq_len in REPLACED else "-"
        by_clock = f"{rate / limit:.2f} of {limit / 1e6:,.2f}"
        by_cpu = f"{row.by_cpu:.2f} of {row.limit['cpu'] / 1e6:,.2f}"
        print(
            f"| {row.mode} | {row.seq_len} | {row.workers} | {rate / row.seq_len:,.0f} | {rate / 1e6:,.2f} |"
            f" {by_clock} | {by_cpu} | {replaced} |"
        )
    off, on = (encode[threads] for threads in ("threads off", "threads on"))
    print("\nThe limit of the tokens mode is the memory copy, that of the lengths mode encode_batch on one core:")
    print(f"{on['wall'] / 1e6:.2f} M tokens/s ({on['cpu'] / 1e6:.2f} by CPU time); with its threads off", end=" ")
    print(f"{off['wall'] / 1e6:.2f} ({off['cpu'] / 1e6:.2f}). Without a worker encode_batch runs on every core.\n")


def print_start(cold: dict, warm: dict) -> None:
    print("| start (tokenizer loaded, imports not counted) | seconds |")
    print("|---|---|")
    print(f"| cold: one-time pass, {cold['tokens'] / cold['open'] / 1e6:.2f} M tokens/s | {cold['open']:.2f} |")
    print(f"| cold: first batch, 1 worker | {cold['first']:.2f} |")
    for workers, result in warm.items():
        print(
            f"| warm: first batch, {workers} workers (data open after {result['open']:.3f}) | {result['first']:.3f} |"
        )


def print_memory(rows: list[Row], baseline: dict) -> None:
    print("\n| memory, MiB own + mapped files | main process | worker |")
    print("|---|---|---|")

    def shown(found: dict[str, float]) -> str:
        return f"{found['own']:.0f} + {found['mapped']:.0f}"

    print(f"| imports alone | {shown(baseline['main'])} | |")
    for row in rows:
        if row.workers:
            result = row.result
            print(f"| {row.mode}, {row.seq_len} | {shown(result['main'])} | {shown(result['workers'][0])} |")


def print_packing(packing: dict[int, dict[str, float]]) -> None:
    print("\n| seq_len | non-padding share | best fit, lookahead 100 | replaced loader |")
    print("|---|---|---|---|")
    for seq_len, result in packing.items():
        replaced = f"{100 * REPLACED[seq_len][1]:.2f} %" if seq_len in REPLACED else "-"
        print(f"| {seq_len} | {100 * result['packed']:.3f} % | {100 * result['best_fit']:.2f} % | {replaced} |")


def print_costs(packing: dict[int, dict[str, float]], extras: dict[str, float]) -> None:
    print()
    for seq_len, result in packing.items():
        block = 65536 * result["microseconds_per_unit"] / 1e3
        print(
            f"- planning at {seq_len}: {result['microseconds_per_unit']:.2f} us CPU per unit, {block:.0f} ms per block"
        )
    print(f"- a micro-batch of {POSITIONS:,} tokens from the cache, planned: {extras['plain']:.3f} ms CPU")
    print(f"- document mask: {extras['mask']:+.3f} ms; token classes: {extras['classes']:+.3f} ms\n")


def print_targets(rows: list[Row], packing: dict) -> None:
    print("| target (one worker) | seq_len | at least | measured | by CPU time | |")
    print("|---|---|---|---|---|---|")

    def show(name: str, seq_len: int | str, least: float, measured: float, by_cpu: float | None = None) -> None:
        verdict = "met" if measured >= least else "missed"
        cpu = "" if by_cpu is None else f"{by_cpu:,.3g}"
        print(f"| {name} | {seq_len} | {least:,.3g} | {measured:,.5g} | {cpu} | {verdict} |")

    for seq_len, result in packing.items():
        show("non-padding share, %", seq_len, 99.8, 100 * result["packed"])
    for row in rows:
        if row.workers:
            name, least = ("memory copy", 1 / 3) if row.mode == "tokens" else ("encode_batch", 0.9)
            show(f"{row.mode} mode / {name}", row.seq_len, least, row.load["wall"] / row.limit["wall"], row.by_cpu)
            if row.mode == "tokens" and row.seq_len in REPLACED:
                replaced = REPLACED[row.seq_len][0]
                show("tokens mode / replaced loader", row.seq_len, 50, row.load["wall"] / replaced)


def print_pass(name: str, result: dict, product: float, at_once: float, cores: int) -> None:
    """A pass against encode_batch: one core's rate times the cores, and what they reach when all are busy."""
    rate = result["tokens"] / result["open"]
    limits = {f"encode_batch x {cores} cores": product, f"encode_batch on {cores} cores at once": at_once}
    for limit, most in limits.items():
        verdict = "met" if rate >= 0.8 * most else "missed"
        print(f"| {name} / ({limit}: {most / 1e6:.2f} M) | | 0.8 | {rate / most:.3f} | | {verdict} |")


if __name__ == "__main__":
    main()

"""What activation checkpointing saves and costs: memory of a step above the weights, and its time, by kind.

    python benchmarks/activation_memory.py [--model qwen3_0_6b] [--compile] [--batch 8] [--repeats 3]

Runs every kind in fresh processes, in alternation, through the package's own wrapping (on a GPU: FSDP2 over one
rank, bfloat16), and prints a Markdown table. Without --model a small one that suits a CPU, where seconds are the
processor's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

KINDS = ("none", "selective", "full")
SEQ_LEN = {"small": 256, "qwen3_0_6b": 2048}
SIZES = {
    "small": {
        "vocab_size": 1024, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1536,
    },
    "qwen3_0_6b": {
        "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    },
}  # fmt: skip
STEPS = 3


def main() -> None:
    arguments = parse_arguments()
    if arguments.kind:
        print(json.dumps(measure(arguments)))
        return
    # glibc keeps freed memory unless told not to, and being told costs time: memory has processes of its own.
    mib = {kind: run(kind, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")["mib"] for kind in KINDS}
    runs = [{kind: run(kind) for kind in KINDS} for _ in range(arguments.repeats)]
    size = f"batch {arguments.batch} x {SEQ_LEN[arguments.model]}"
    compiled = "compiled" if arguments.compile else "eager"
    print(f"{arguments.model}, {size}, {compiled}; seconds: median of {arguments.repeats} processes\n")
    print("| activation checkpointing | memory of a step, MiB | ratio | seconds of a step | ratio | loss |")
    print("|---|---|---|---|---|---|")
    seconds = {kind: median(found[kind]["seconds"] for found in runs) for kind in KINDS}
    for kind in KINDS:
        memory = f"{mib[kind]:,.0f} | {mib[kind] / mib['none']:.2f}"
        print(
            f"| {kind} | {memory} | {seconds[kind]:.3f} | {seconds[kind] / seconds['none']:.2f} | "
            f"{runs[0][kind]['loss']!r} |"
        )


def run(kind: str, **env: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}).stdout
    return json.loads(output.splitlines()[-1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a forward and backward pass, its peak of memory above what stood before, and the loss."""
    from molgen_pretrain.parallel.distributed import joined_world

    with joined_world("auto", needs_group=True, timeout_seconds=600) as world:
        return steps(arguments, world.device)


def steps(arguments: argparse.Namespace, device: object) -> dict[str, float]:
    import torch

    from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
    from molgen_pretrain.parallel.degrees import resolve_degrees
    from molgen_pretrain.parallel.layout import build_layout
    from molgen_pretrain.parallel.parallelize import Wrapping, parallelize

    assert isinstance(device, torch.device)
    on_gpu = device.type == "cuda"
    arch = Qwen3Arch(**SIZES[arguments.model])
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0), loss_chunk_tokens=4096)
    wrapping = Wrapping(
        compute_dtype=torch.bfloat16 if on_gpu else torch.float32,
        activation_checkpointing=arguments.kind,
        compile=arguments.compile,
    )
    layout = build_layout(resolve_degrees(replicate=1, shard=-1, tensor=1, world_size=1), rank=0, device=device)
    fill = partial(materialize, model, device=device, seed=0)
    called = parallelize(model, list(model.model.layers), layout, wrapping, fill=fill)
    shape = (arguments.batch, SEQ_LEN[arguments.model])
    tokens = torch.randint(0, arch.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    seconds, rises = [], []
    for _ in range(STEPS):
        before = start_watching(on_gpu)
        began = clock(on_gpu)
        loss = called(tokens, tokens).total
        loss.backward()
        value = float(loss.detach())  # waits for the device
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(clock(on_gpu) - began)
        rises.append(peak(on_gpu) - before)
    # The first step makes gradients and compiles.
    return {"seconds": median(seconds[1:]), "mib": median(rises[1:]) / 2**20, "loss": value}


def clock(on_gpu: bool) -> float:
    """Seconds; of the processor on a CPU, which others use too."""
    return time.perf_counter() if on_gpu else time.process_time()


def start_watching(on_gpu: bool) -> int:
    """Bytes in use; the peak counts from now on."""
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(on_gpu: bool) -> int:
    if on_gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    return resident("VmHWM")


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()

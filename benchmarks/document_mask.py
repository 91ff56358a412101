"""What the document mask costs or saves: plain causal attention, the kernel that skips across units, a full mask.

    python benchmarks/document_mask.py [--seq-lens 2048 4096] [--tokens 16384] [--rounds 10]

On a GPU the sizes are Qwen3-0.6B's, in bfloat16; on a CPU a tiny model's, in float32. Rows are full
of units whose lengths are those of the conformers. The three are timed in turn, round by round, forward and
backward, and the medians are printed as a Markdown table beside the ratio to plain attention.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from molgen_pretrain.model.document_mask import (
    block_causal_mask,
    causal_arguments,
    document_arguments,
    document_attention,
    has_varlen_kernel,
)
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize

# Tokens per unit, separator included: 20 quantiles of the training conformers with the custom Qwen3 tokenizer.
UNIT_LENGTHS = (
    253, 341, 409, 458, 489, 517, 544, 567, 590, 614, 638, 661, 686, 711, 740, 768, 797, 831, 876, 977,
)  # fmt: skip
QWEN3_0_6B = Qwen3Arch(
    vocab_size=151_936,
    hidden_size=1024,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=3072,
)
TINY = Qwen3Arch(
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=128,
)
Case = Callable[[], object]


def main() -> None:
    options = parse_arguments()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = build(device)
    print(f"{name_of(device)}, torch {torch.__version__}, {next(model.parameters()).dtype}, {options.rounds} rounds\n")
    print("| what | rows x seq_len | plain ms | kernel ms (ratio) | full mask ms (ratio) |\n|---|---|---|---|---|")
    for seq_len in options.seq_lens or ((2048, 4096) if device.type == "cuda" else (1024, 2048)):
        rows = max(1, options.tokens // seq_len) if device.type == "cuda" else 2
        batch = full_rows(rows, seq_len, model.config.vocab_size, device)
        for what, cases in (
            ("attention of one layer", attentions(batch, model)),
            ("the decoder", trainings(batch, model)),
        ):
            print_row(f"{what} | {rows} x {seq_len}", medians(cases, options.rounds, device))
        if device.type == "cuda":
            print_row(f"memory of the decoder, GiB | {rows} x {seq_len}", peaks(trainings(batch, model)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seq-lens", type=int, nargs="+")
    parser.add_argument("--tokens", type=int, default=16_384, help="per batch, on a GPU")
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def build(device: torch.device) -> Qwen3ForPretraining:
    on_gpu = device.type == "cuda"
    arch = QWEN3_0_6B if on_gpu else TINY
    config = arch.hf_config(eos_token_id=0, pad_token_id=0)
    model = build_on_meta(config, document_mask=True)
    materialize(model, device=device, seed=1)
    if on_gpu:
        for parameter in model.parameters():  # as FSDP2's mixed precision hands them to the forward
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def full_rows(rows: int, seq_len: int, vocab_size: int, device: torch.device) -> dict[str, Tensor]:
    """Units one after the other until each row is full; the last one is cut."""
    draw = random.Random(0)
    places = torch.empty(rows, seq_len, dtype=torch.int64)
    for row in places:
        filled = 0
        while filled < seq_len:
            length = min(draw.choice(UNIT_LENGTHS), seq_len - filled)
            row[filled : filled + length] = torch.arange(length)
            filled += length
    input_ids = torch.randint(vocab_size, (rows, seq_len), generator=torch.Generator().manual_seed(0))
    borders = F.pad((places.flatten() == 0).nonzero().flatten(), (0, 1), value=places.numel()).int()
    batch = {"input_ids": input_ids, "position_ids": places, "unit_borders": borders}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def full_mask(batch: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of a decoder that was given neither borders nor a kernel for blocks."""
    return {"attention_mask": {"full_attention": block_causal_mask(batch["position_ids"])}}


def kernel_arguments(batch: dict[str, Tensor], model: Qwen3ForPretraining) -> dict[str, Any] | None:
    """Those that make attention skip what is in other units; None where nothing does."""
    weight = model.lm_head.weight
    varlen = has_varlen_kernel(weight.device, weight.dtype, model.config.head_dim)
    if weight.device.type == "cuda" and not varlen:
        return None
    return document_arguments(batch["position_ids"], unit_borders=batch["unit_borders"] if varlen else None)


def attentions(batch: dict[str, Tensor], model: Qwen3ForPretraining) -> list[Case | None]:
    """Forward and backward of the attention function alone, on random queries, keys and values."""
    module, places, weight = model.model.layers[0].self_attn, batch["position_ids"], model.lm_head.weight
    heads = (model.config.num_attention_heads, model.config.num_key_value_heads, model.config.num_key_value_heads)
    inputs = [
        torch.randn(places.shape[0], places.shape[1], n, model.config.head_dim, device=weight.device)
        .to(weight.dtype)
        .transpose(1, 2)
        .requires_grad_()
        for n in heads
    ]

    def run(arguments: dict[str, Any]) -> None:
        given = {"position_ids": places, **arguments}
        mask = given.pop("attention_mask")["full_attention"]
        attended, _ = document_attention(module, *inputs, mask, scaling=module.scaling, **given)
        torch.autograd.grad(attended, inputs, attended.detach())

    return cases(run, batch, model)


def trainings(batch: dict[str, Tensor], model: Qwen3ForPretraining) -> list[Case | None]:
    """Forward and backward of the whole decoder, without head and loss."""

    def run(arguments: dict[str, Any]) -> None:
        decoded = model.model(input_ids=batch["input_ids"], use_cache=False, **arguments).last_hidden_state
        decoded.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return cases(run, batch, model)


def cases(
    run: Callable[[dict[str, Any]], None], batch: dict[str, Tensor], model: Qwen3ForPretraining
) -> list[Case | None]:
    """Plain attention, that which skips, and the full mask, each prepared once."""
    kernel, mask = kernel_arguments(batch, model), full_mask(batch)
    return [lambda: run(causal_arguments()), None if kernel is None else lambda: run(kernel), lambda: run(mask)]


def medians(cases: list[Case | None], rounds: int, device: torch.device) -> list[float | None]:
    """Median milliseconds of each case, all of them once per round; the first two rounds do not count."""
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds + 2):
        for case, found in zip(cases, times, strict=True):
            if case is not None:
                wait_for(device)
                began = time.perf_counter()
                case()
                wait_for(device)
                found.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(found[2:]) if found else None for found in times]


def peaks(cases: list[Case | None]) -> list[float | None]:
    """Peak GiB of GPU memory of each case, weights included."""
    found: list[float | None] = []
    for case in cases:
        torch.cuda.reset_peak_memory_stats()
        if case is not None:
            case()
        found.append(None if case is None else torch.cuda.max_memory_allocated() / 2**30)
    return found


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_row(title: str, values: list[float | None]) -> None:
    plain, *masked = ("-" if value is None else f"{value:.3g}" for value in values)
    if values[0] is not None:
        ratios = ("" if value is None else f" ({value / values[0]:.2f})" for value in values[1:])
        masked = [cell + ratio for cell, ratio in zip(masked, ratios, strict=True)]
    print(f"| {title} | {' | '.join([plain, *masked])} |", flush=True)


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


if __name__ == "__main__":
    main()

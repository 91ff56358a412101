"""Every layout trains the same: names, ties, initial weights, losses and gradient norms of one process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize
from molgen_pretrain.optim.optimizer import clip_grad_norm
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import Layout, build_layout
from molgen_pretrain.parallel.parallelize import Wrapping, gradient_sync, parallelize

# 41 rows and 3 ranks of anything divide nothing evenly; heads and intermediate_size divide by 2.
ARCH = Qwen3Arch(
    vocab_size=41, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    intermediate_size=50,
)  # fmt: skip
ROWS, SEQ_LEN, STEPS = 16, 20, 3
CPU = torch.device("cpu")


class Case(NamedTuple):
    """One way to run the same training: degrees and what is done besides."""

    replicate: int = 1
    shard: int = 1
    tensor: int = 1
    accumulation: int = 1
    activation_checkpointing: Any = "none"
    reshard: Any = "default"
    compile: bool = False
    cpu_offload: bool = False
    chunk_tokens: int = 0
    document_mask: bool = False
    tied: bool = True

    def layout(self) -> Layout:
        size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        degrees = resolve_degrees(replicate=self.replicate, shard=self.shard, tensor=self.tensor, world_size=size)
        return build_layout(degrees, rank=rank, device=CPU)

    def alone(self) -> Case:
        """The same training in one process, without anything around it."""
        return Case(document_mask=self.document_mask, tied=self.tied)


def build(case: Case, layout: Layout) -> tuple[Qwen3ForPretraining, torch.nn.Module]:
    """The model and what is called."""
    arch = replace(ARCH, tie_word_embeddings=case.tied)
    model = build_on_meta(
        arch.hf_config(eos_token_id=0, pad_token_id=0),
        loss_kernel="fused" if case.tensor == 1 else "checkpointed",
        loss_chunk_tokens=case.chunk_tokens,
        document_mask=case.document_mask,
    )
    wrapping = Wrapping(
        activation_checkpointing=case.activation_checkpointing,
        reshard_after_forward=case.reshard,
        compile=case.compile,
        cpu_offload=case.cpu_offload,
    )
    fill = partial(materialize, model, device=CPU, seed=3)
    return model, parallelize(model, list(model.model.layers), layout, wrapping, fill=fill)


def global_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, labels and position_ids [ROWS, SEQ_LEN]; the rows have from 1 to SEQ_LEN labels."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, ARCH.vocab_size, (ROWS, SEQ_LEN + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    trained = torch.randint(1, SEQ_LEN + 1, (ROWS, 1), generator=generator)
    labels[torch.arange(SEQ_LEN) >= trained] = -100
    border = torch.randint(1, SEQ_LEN, (ROWS, 1), generator=generator)  # two units in each row
    places = torch.arange(SEQ_LEN).expand(ROWS, SEQ_LEN)
    return tokens[:, :-1], labels, torch.where(places < border, places, places - border)


def train(case: Case) -> dict[str, Any]:
    """Losses and gradient norms of a few clipped AdamW updates, and what the model was before them."""
    layout = case.layout()
    model, called = build(case, layout)
    facts = {
        "names": [name for name, _ in model.named_parameters()],
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "weights": digest(model),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, norms = [], []
    for step in range(STEPS):
        inputs = [whole.chunk(layout.data_parallel_size)[layout.data_parallel_rank] for whole in global_batch(step)]
        micro_batches = list(zip(*(part.chunk(case.accumulation) for part in inputs), strict=True))
        tokens = (global_batch(step)[1] != -100).sum()
        total = torch.zeros(())
        for number, (input_ids, labels, position_ids) in enumerate(micro_batches):
            with gradient_sync(called, is_last=number == case.accumulation - 1):
                loss_sum = called(input_ids, labels, position_ids if case.document_mask else None).total
                (loss_sum * (layout.data_parallel_size / tokens)).backward()
            total += loss_sum.detach() * layout.counts_data
        if dist.is_initialized():
            dist.all_reduce(total)
        losses.append(float(total / tokens))
        norms.append(float(clip_grad_norm(model.parameters(), 0.5)))
        optimizer.step()
        optimizer.zero_grad()
    return {**facts, "losses": losses, "norms": norms}


def digest(model: torch.nn.Module) -> str:
    """Of all weights. Collective where they are sharded."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found.update(value.detach().numpy().tobytes())
    return found.hexdigest()


def run_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The compiler's front end and its tracing of backwards, without generated code: seconds instead of a minute.
    torch.compile = partial(torch.compile, backend="aot_eager")
    return [train(Case(**case)) for case in cases]


def check(
    run_distributed: Callable[..., Any], world_size: int, cases: list[Case], **options: Any
) -> list[dict[str, Any]]:
    """Every rank's results are those of one process; returns the first rank's."""
    expected = {case: train(case) for case in {case.alone() for case in cases}}
    for results in (ranks := run_distributed(run_cases, world_size, [case._asdict() for case in cases], **options)):
        for case, result in zip(cases, results, strict=True):
            alone = expected[case.alone()]
            for fact in ("names", "tied", "weights"):
                assert result[fact] == alone[fact], f"{case}: other {fact}"
            assert result["losses"] == pytest.approx(alone["losses"], rel=1e-5), case
            assert result["norms"] == pytest.approx(alone["norms"], rel=1e-4), case
    return ranks[0]


def test_two_ranks(run_distributed: Callable[..., Any]) -> None:
    fsdp, ddp, tensor = Case(shard=2), Case(replicate=2), Case(tensor=2)
    cases = [layout._replace(accumulation=steps) for layout in (fsdp, ddp, tensor) for steps in (1, 4)]
    cases += [Case(replicate=2, shard=-1), fsdp._replace(cpu_offload=True), tensor._replace(tied=False)]
    check(run_distributed, 2, cases)


def test_four_ranks(run_distributed: Callable[..., Any]) -> None:
    layouts = [Case(shard=4), Case(replicate=2, shard=2), Case(shard=2, tensor=2), Case(replicate=2, tensor=2)]
    check(run_distributed, 4, [layout._replace(accumulation=2) for layout in layouts])


def test_what_is_computed_again_changes_no_bit(run_distributed: Callable[..., Any]) -> None:
    fsdp, ddp, tensor = Case(shard=-1, document_mask=True), Case(replicate=2), Case(tensor=2, document_mask=True)
    selective = {"activation_checkpointing": "selective"}
    alike = [
        [fsdp, fsdp._replace(activation_checkpointing="full", reshard="never")],
        [fsdp, fsdp._replace(**selective, reshard="always")],
        [ddp, ddp._replace(activation_checkpointing="full")],
        [tensor, tensor._replace(**selective)],
    ]
    results = iter(check(run_distributed, 2, [case for cases in alike for case in cases]))
    for cases in alike:
        first, *others = (next(results) for _ in cases)
        assert all(other == first for other in others), cases


@pytest.mark.slow
def test_compiled_blocks_and_chunked_loss(run_distributed: Callable[..., Any]) -> None:
    compiled = Case(compile=True, chunk_tokens=30, activation_checkpointing="selective", document_mask=True)
    degrees: list[dict[str, int]] = [{"shard": 2}, {"replicate": 2}, {"tensor": 2}]
    check(run_distributed, 2, [compiled._replace(**degree) for degree in degrees], timeout_seconds=240)


def peak_of_building() -> dict[str, float]:
    """MiB of this rank's shards, of the largest parameter, and how far resident memory rose while building."""
    arch = replace(ARCH, vocab_size=8192, hidden_size=512, num_hidden_layers=8, intermediate_size=2048)
    layout = Case(shard=-1).layout()
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0))
    largest = max(p.numel() for p in model.parameters()) * 4
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    fill = partial(materialize, model, device=CPU, seed=3)
    parallelize(model, list(model.model.layers), layout, Wrapping(), fill=fill)
    rise = _resident("VmHWM") - before
    shards = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)) * 4
    whole = sum(p.numel() for p in model.parameters()) * 4
    return {name: value / 2**20 for name, value in locals().items() if name in ("whole", "shards", "largest", "rise")}


def _resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' account of memory")
def test_building_takes_a_shard_and_the_largest_parameter(run_distributed: Callable[..., Any]) -> None:
    for mib in run_distributed(peak_of_building, 4):
        assert mib["shards"] == pytest.approx(mib["whole"] / 4, rel=0.02)
        assert mib["rise"] < mib["shards"] + mib["largest"] + 25, mib

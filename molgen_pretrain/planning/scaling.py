"""The same run on more GPUs: which layout, how long a step, where communication takes over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from molgen_pretrain.model.flops import step_flops
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.planning.activations import Precision
from molgen_pretrain.planning.gpus import Gpu
from molgen_pretrain.planning.links import Transfer
from molgen_pretrain.planning.memory import GIB, RankLoad, peak
from molgen_pretrain.planning.traffic import Traffic, step_traffic

# Of a GPU's memory: the CUDA context and NCCL's buffers, and what the allocator leaves unused between blocks.
_CONTEXT_GIB = 1.5
_UNUSED = 0.06
_MOST = 1e6  # times the tokens that a break-even is looked for
_EQUAL = 0.02  # steps that differ by less are equally fast


def usable_bytes(gpu: Gpu) -> float:
    """What a plan may fill."""
    return ((1 - _UNUSED) * gpu.memory_gib - _CONTEXT_GIB) * GIB


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What turns FLOPs into seconds: the peak of one GPU (FLOP/s), the share of it that a lone one reaches, and the
    attention pairs per token of the data."""

    peak_flops: float
    mfu: float
    pairs_per_token: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One update on `gpus` GPUs. Seconds are per step; `waiting_seconds` is the part of communication that
    computation does not hide. `reason`: why this layout, where it was chosen among several. `break_even_tokens`: with
    fewer per GPU the step would wait longer than it computes."""

    gpus: int
    layout: str
    reason: str
    load: RankLoad
    memory_bytes: float
    fits: bool
    compute_seconds: float
    communication: Transfer
    waiting_seconds: float
    break_even_tokens: float

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.waiting_seconds

    @property
    def tokens(self) -> int:
        """Of the global batch."""
        return self.load.tokens * self.load.accumulation * self.load.degrees.data_parallel

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def efficiency(self) -> float:
        """Of the speed without any waiting."""
        return self.compute_seconds / self.seconds

    @property
    def communication_dominates(self) -> bool:
        return self.waiting_seconds > self.compute_seconds

    def hours(self, tokens: float) -> float:
        return tokens / self.tokens_per_second / 3600


def plan_step(load: RankLoad, gpu: Gpu, speed: Speed) -> Step:
    """The step of a load as it is."""
    tokens = load.tokens * load.accumulation
    flops = step_flops(load.sizes, tokens=tokens, attention_pairs=tokens * speed.pairs_per_token)
    compute_seconds = flops / load.degrees.tensor / (speed.peak_flops * speed.mfu)
    traffic = step_traffic(load, gpu)
    memory_bytes = peak(load)[1].total
    return Step(
        gpus=load.degrees.data_parallel * load.degrees.tensor,
        layout=_name(load.degrees),
        reason="as configured",
        load=load,
        memory_bytes=memory_bytes,
        fits=memory_bytes <= usable_bytes(gpu),
        compute_seconds=compute_seconds,
        communication=traffic.total,
        waiting_seconds=traffic.waiting_seconds(compute_seconds),
        break_even_tokens=tokens * _break_even(traffic, compute_seconds),
    )


def _break_even(traffic: Traffic, compute_seconds: float) -> float:
    """The share of a step's tokens with which it would wait as long as it computes; inf where it always waits longer,
    for sums of hidden states. Weights and gradients are moved whatever the tokens are."""

    def waits_longer(share: float) -> bool:
        fewer = replace(traffic, tensor=traffic.tensor.times(share))
        return fewer.waiting_seconds(share * compute_seconds) > share * compute_seconds

    low, high = 0.0, 1.0
    while waits_longer(high):
        low, high = high, 2 * high
        if high > _MOST:
            return math.inf
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if waits_longer(middle) else (low, middle)
    return high


def best_step(load: RankLoad, gpus: int, gpu: Gpu, speed: Speed, *, half_dtype: bool) -> Step:
    """The fastest layout of `gpus` GPUs that fits, with the load's batch and tensor degree; of equally fast ones
    FSDP, then HSDP. Where none fits, the one that needs least memory.

    `half_dtype`: the run computes in bfloat16, in which FSDP2 gathers weights and which autocast makes of them else.
    """
    steps = [
        plan_step(replace(load, degrees=degrees, precision=precision(half_dtype, degrees)), gpu, speed)
        for degrees in _layouts(gpus, load, gpu)
    ]
    fitting = [step for step in steps if step.fits]
    if not fitting:
        return replace(min(steps, key=lambda step: step.memory_bytes), reason="none fits")
    fastest = min(step.seconds for step in fitting)
    best = next(step for step in fitting if step.seconds <= (1 + _EQUAL) * fastest)
    return replace(best, reason=_reason(best, steps, fitting))


def _reason(best: Step, steps: Sequence[Step], fitting: Sequence[Step]) -> str:
    if len(steps) == 1:
        return "one GPU" if best.gpus == 1 else "no other"
    if len(fitting) == 1:
        return "only this fits"
    if best.seconds > min(step.seconds for step in fitting):
        return "least memory"
    return "fastest: gathers within a node" if best.load.degrees.replicate > 1 and best.load.degrees.fsdp else "fastest"


def precision(half_dtype: bool, degrees: Degrees) -> Precision:
    """How a GPU computes in a layout."""
    if not half_dtype:
        return "float32"
    return "bfloat16" if degrees.fsdp else "autocast"


def at_fixed_global_batch(load: RankLoad, sequences: int, gpus: int) -> RankLoad | None:
    """The load with the global batch of `sequences` divided over `gpus` GPUs, in as few micro-batches as their
    present size allows; None where it cannot be divided so."""
    ranks = gpus // load.degrees.tensor
    if gpus % load.degrees.tensor or sequences % ranks:
        return None
    own = sequences // ranks
    local = next(size for size in range(min(own, load.local_batch_size), 0, -1) if own % size == 0)
    return replace(load, local_batch_size=local, accumulation=own // local)


def _layouts(gpus: int, load: RankLoad, gpu: Gpu) -> Iterator[Degrees]:
    """FSDP, HSDP with a copy per node, and DDP where it can do what the load asks for."""
    tensor = load.degrees.tensor
    ranks = gpus // tensor
    yield Degrees(1, ranks, tensor, fsdp=True)
    in_node = max(1, gpu.per_node // tensor)
    if ranks > in_node and ranks % in_node == 0:
        yield Degrees(ranks // in_node, in_node, tensor, fsdp=True)
    if tensor == 1 and ranks > 1 and not load.cpu_offload:
        yield Degrees(ranks, 1, 1, fsdp=False)


def _name(degrees: Degrees) -> str:
    tensor = f" x tp {degrees.tensor}" if degrees.tensor > 1 else ""
    if not degrees.fsdp:
        return f"ddp {degrees.replicate}" if degrees.replicate > 1 else "single"
    if degrees.replicate > 1:
        return f"hsdp {degrees.replicate} x {degrees.shard}{tensor}"
    return f"fsdp {degrees.shard}{tensor}"

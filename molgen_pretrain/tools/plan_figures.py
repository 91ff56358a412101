"""Every figure of the plan, from a planned run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from molgen_pretrain.model.flops import step_flops
from molgen_pretrain.model.parameters import Parameters, count
from molgen_pretrain.planning.gpus import Gpu
from molgen_pretrain.planning.memory import GIB, Moment, Need, host_bytes, largest_local_batch, memory
from molgen_pretrain.planning.scaling import Speed, Step, at_fixed_global_batch, best_step, plan_step, usable_bytes
from molgen_pretrain.tools.plan_data import DataPlan
from molgen_pretrain.tools.plan_run import PlannedRun

# Imports of the application and torch's own threads, resident before the first step (Linux, Python 3.11, torch 2.13,
# transformers 5.23): what a process on a CPU takes besides the figures of `planning.memory`.
PROCESS_BYTES = 0.40 * GIB


@dataclass(frozen=True)
class FlopsPerToken:
    """With the attention pairs that the data have."""

    forward: float
    backward: float
    attention_share: float
    head_share: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """`limit_bytes`: what a GPU offers the run, None on a CPU. `alone`: the run's own layout; `weak`: the same local
    batch on more GPUs; `strong`: the same global batch. All three are empty on a CPU, whose peak nobody knows."""

    run: PlannedRun
    data: DataPlan
    gpu: Gpu | None
    mfu: float
    parameters: Parameters
    flops: FlopsPerToken
    moments: dict[Moment, Need]
    host_bytes: float
    limit_bytes: float | None
    largest_batch: int | None
    alone: Step | None
    weak: tuple[Step, ...]
    strong: tuple[Step, ...]

    @property
    def steps(self) -> int:
        return self.run.cfg.training.steps

    @property
    def run_tokens(self) -> int:
        """Positions that the run trains on."""
        return self.steps * self.run.sequences_per_step * self.run.load.seq_len

    @property
    def peak(self) -> tuple[Moment, Need]:
        return max(self.moments.items(), key=lambda item: item[1].total)

    @property
    def peak_bytes(self) -> float:
        """With the process itself, on a CPU."""
        return self.peak[1].total + (0.0 if self.run.on_gpu else PROCESS_BYTES)

    def as_json(self) -> dict[str, Any]:
        """Every figure; bytes, seconds and tokens unrounded."""
        sequences = self.data.sequences(self.run.load.seq_len)
        return {
            "parameters": {**asdict(self.parameters), "block": self.parameters.block, "total": self.parameters.total},
            "flops_per_token": asdict(self.flops),
            "memory_bytes": {moment: {**vars(need), "total": need.total} for moment, need in self.moments.items()},
            "peak_moment": self.peak[0],
            "peak_bytes": self.peak_bytes,
            "host_bytes": self.host_bytes,
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "limit_bytes": self.limit_bytes,
            "largest_local_batch_size": self.largest_batch,
            "data": {
                **asdict(self.data),
                "sequences": sequences,
                "steps_per_epoch": None if sequences is None else sequences / self.run.sequences_per_step,
            },
            "tokens_per_step": self.run.sequences_per_step * self.run.load.seq_len,
            "run_tokens": self.run_tokens,
            "mfu": self.mfu,
            "run": None if self.alone is None else step_json(self.alone, self.run_tokens),
            "weak_scaling": [step_json(step, self.run_tokens) for step in self.weak],
            "strong_scaling": [step_json(step, self.run_tokens) for step in self.strong],
        }


def step_json(step: Step, run_tokens: float) -> dict[str, Any]:
    load = step.load
    return {
        "gpus": step.gpus,
        "layout": step.layout,
        "reason": step.reason,
        "local_batch_size": load.local_batch_size,
        "accumulation": load.accumulation,
        "tokens": step.tokens,
        "memory_bytes": step.memory_bytes,
        "fits": step.fits,
        "compute_seconds": step.compute_seconds,
        "communication_bytes": step.communication.bytes,
        "communication_seconds": step.communication.seconds,
        "waiting_seconds": step.waiting_seconds,
        "efficiency": step.efficiency,
        "break_even_tokens": step.break_even_tokens if math.isfinite(step.break_even_tokens) else None,
        "communication_dominates": step.communication_dominates,
        "tokens_per_second": step.tokens_per_second,
        "hours": step.hours(run_tokens),
    }


def work_out(run: PlannedRun, data: DataPlan, gpu: Gpu | None, *, mfu: float, gpus: Sequence[int]) -> Figures:
    """`gpus`: how many, for the scaling tables. Without a GPU there are none."""
    load = run.load
    limit = usable_bytes(gpu) if gpu is not None else None
    alone, weak, strong = _scaling(run, data, gpu, mfu, gpus)
    return Figures(
        run=run,
        data=data,
        gpu=gpu,
        mfu=mfu,
        parameters=count(load.sizes),
        flops=_flops(run, data),
        moments=memory(load),
        host_bytes=host_bytes(load),
        limit_bytes=limit,
        largest_batch=None if limit is None else largest_local_batch(load, limit),
        alone=alone,
        weak=weak,
        strong=strong,
    )


def _flops(run: PlannedRun, data: DataPlan) -> FlopsPerToken:
    sizes = run.load.sizes
    forward = step_flops(sizes, tokens=1, attention_pairs=data.pairs_per_token, backward=False)
    attention = step_flops(sizes, tokens=0, attention_pairs=data.pairs_per_token, backward=False)
    head = 2 * sizes.vocab_size * sizes.hidden_size
    return FlopsPerToken(forward, 2 * forward, attention / forward, head / forward)


def _scaling(
    run: PlannedRun, data: DataPlan, gpu: Gpu | None, mfu: float, gpus: Sequence[int]
) -> tuple[Step | None, tuple[Step, ...], tuple[Step, ...]]:
    """(as configured, weak, strong)."""
    peak_flops = None if gpu is None else gpu.peak("bfloat16" if run.half_dtype else "float32")
    if gpu is None or peak_flops is None:
        return None, (), ()
    speed = Speed(peak_flops=peak_flops, mfu=mfu, pairs_per_token=data.pairs_per_token)
    weak, strong = _weak(run, gpu, speed, gpus), _strong(run, gpu, speed, gpus)
    return plan_step(run.load, gpu, speed), tuple(weak), tuple(strong)


def _weak(run: PlannedRun, gpu: Gpu, speed: Speed, gpus: Sequence[int]) -> list[Step]:
    """One micro-batch of the run's size per GPU."""
    tensor = run.load.degrees.tensor
    load = run.load.with_accumulation(1)
    return [best_step(load, n, gpu, speed, half_dtype=run.half_dtype) for n in gpus if n % tensor == 0]


def _strong(run: PlannedRun, gpu: Gpu, speed: Speed, gpus: Sequence[int]) -> list[Step]:
    """The run's global batch, divided over more."""
    steps = []
    for n in gpus:
        load = at_fixed_global_batch(run.load, run.sequences_per_step, n)
        if load is not None:
            steps.append(best_step(load, n, gpu, speed, half_dtype=run.half_dtype))
    return steps

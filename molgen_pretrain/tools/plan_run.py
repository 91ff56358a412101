"""The run that the plan tool looks at: from the config to the arithmetic's plain inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.config.batch import accumulation_steps
from molgen_pretrain.config.choices import Device, Dtype, ReshardAfterForward
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.optimizer_schema import AdamConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from molgen_pretrain.config.plain import compiles_blocks, loss_kernel
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.validate import parallel_degrees, validate
from molgen_pretrain.model.loss_kernels import default_chunk_tokens
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.planning.activations import Operators, Precision
from molgen_pretrain.planning.memory import OptimizerKind, RankLoad
from molgen_pretrain.planning.scaling import precision

_OPTIMIZERS: dict[type[OptimizerConfig], OptimizerKind] = {
    AdamWConfig: "adamw",
    AdamConfig: "adam",
    SGDConfig: "sgd",
    MuonConfig: "muon",
}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A checked config, and one rank of it. `half_dtype`: it computes in bfloat16. `on_gpu`: on one."""

    cfg: RunConfig
    load: RankLoad
    half_dtype: bool
    on_gpu: bool

    @property
    def sequences_per_step(self) -> int:
        return self.load.local_batch_size * self.load.accumulation * self.load.degrees.data_parallel


def plan_run(overrides: Sequence[str], *, world_size: int, config_dir: Path | None, on_gpu: bool) -> PlannedRun:
    """Compose and check a run as the application would, and start nothing.

    Raises UserError or Hydra's errors, which `config.messages.explain` turns into the application's messages.
    """
    cfg = compose_run(overrides, config_dir)
    validate(cfg, world_size)
    on_gpu = on_gpu and cfg.training.device is not Device.cpu
    degrees = parallel_degrees(cfg, world_size)
    # auto: every GPU of the table multiplies bfloat16, and so do the CPUs that train best.
    half_dtype = cfg.training.dtype is not Dtype.float32
    training, parallelism = cfg.training, cfg.parallelism
    is_plain_sgd = isinstance(cfg.optimizer, SGDConfig) and cfg.optimizer.momentum == 0
    load = RankLoad(
        sizes=cfg.model,
        seq_len=training.seq_len,
        local_batch_size=training.local_batch_size,
        accumulation=accumulation_steps(training.local_batch_size, training.global_batch_size, degrees.data_parallel),
        degrees=degrees,
        precision=_precision(half_dtype, degrees, on_gpu),
        operators=_operators(cfg, on_gpu),
        checkpointing=parallelism.activation_checkpointing.value,
        optimizer=_OPTIMIZERS[type(cfg.optimizer)],
        has_momentum=not is_plain_sgd,
        loss_kernel=loss_kernel(cfg.model, degrees.tensor),
        chunk_tokens=_chunk_tokens(cfg, on_gpu),
        keeps_gathered=parallelism.fsdp_reshard_after_forward is ReshardAfterForward.never,
        prefetch=parallelism.fsdp_prefetch,
        cpu_offload=parallelism.cpu_offload and on_gpu,
    )
    return PlannedRun(cfg=cfg, load=load, half_dtype=half_dtype, on_gpu=on_gpu)


def _precision(half_dtype: bool, degrees: Degrees, on_gpu: bool) -> Precision:
    if on_gpu:
        return precision(half_dtype, degrees)
    return "autocast" if half_dtype else "float32"


def _operators(cfg: RunConfig, on_gpu: bool) -> Operators:
    if compiles_blocks(cfg.parallelism, on_gpu=on_gpu):
        return "compiled"
    return "fused" if cfg.model.fused_ops else "eager"


def _chunk_tokens(cfg: RunConfig, on_gpu: bool) -> int:
    if cfg.model.loss_chunk_tokens is not None:
        return cfg.model.loss_chunk_tokens
    return default_chunk_tokens(cfg.model.vocab_size, device_type="cuda" if on_gpu else "cpu")

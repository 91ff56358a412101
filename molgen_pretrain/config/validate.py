"""Rules that types cannot express, most of them between groups: all violations in one message, in milliseconds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from molgen_pretrain.config.batch import batch_problems
from molgen_pretrain.config.choices import AnomalyAction, Float8, GroupPreset, LossKernel
from molgen_pretrain.config.optimizer_schema import AdamConfig, MuonConfig, OptimizerConfig, SGDConfig, TypeScales
from molgen_pretrain.config.plain import build_schedule, resume_policy, source_names
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.errors import UserError
from molgen_pretrain.parallel.degrees import Degrees, resolve_degrees, tensor_degree_problems, uneven_rows_problems
from molgen_pretrain.schedules import ScheduleError

_SIZE = re.compile(r"\d*[1-9]\d*(\.\d+)? ?[KMGT]B")


def validate(cfg: RunConfig, world_size: int) -> None:
    """Raise UserError with one line per broken rule, `section.key=value: rule; legal values or fix`."""
    problems = [
        *_schedule_problems(cfg),
        *_model_problems(cfg),
        *_optimizer_problems(cfg),
        *_data_problems(cfg),
        *_parallelism_problems(cfg, world_size),
        *_training_problems(cfg),
        *_cadence_problems(cfg),
        *_run_name_problems(cfg),
    ]
    if problems:
        raise UserError("\n".join(problems))


def parallel_degrees(cfg: RunConfig, world_size: int) -> Degrees:
    """The ranks along each axis. Raises UserError where the degrees do not multiply to `world_size`."""
    given, model = cfg.parallelism, cfg.model
    return resolve_degrees(
        replicate=given.data_parallel_replicate_degree,
        shard=given.data_parallel_shard_degree,
        tensor=given.tensor_parallel_degree,
        world_size=world_size,
        tensor_divides=math.gcd(model.num_attention_heads, model.num_key_value_heads, model.intermediate_size),
    )


def _at_least(cfg: RunConfig, minimum: float, *keys: str) -> Iterator[str]:
    for key in keys:
        section, field = key.split(".")
        value = getattr(getattr(cfg, section), field)
        if value is not None and value < minimum:
            yield f"{key}={value}: must be at least {minimum:g}"


def _schedule_problems(cfg: RunConfig) -> Iterator[str]:
    try:
        build_schedule(cfg.scheduler)
    except ScheduleError as error:
        yield from (f"scheduler.{problem}" for problem in error.problems)
        return
    try:
        resume_policy(cfg.scheduler)
    except UserError as error:
        yield str(error)


def _model_problems(cfg: RunConfig) -> Iterator[str]:
    model = cfg.model
    yield from _at_least(
        cfg, 1, "model.vocab_size", "model.hidden_size", "model.num_hidden_layers", "model.num_attention_heads",
        "model.num_key_value_heads", "model.head_dim", "model.intermediate_size",
    )  # fmt: skip
    yield from _at_least(cfg, 0, "model.loss_chunk_tokens", "model.initializer_range")
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if kv_heads >= 1 and heads % kv_heads:
        yield f"model.num_attention_heads={heads}: must be a multiple of model.num_key_value_heads={kv_heads}"
    if model.head_dim % 2:
        yield f"model.head_dim={model.head_dim}: must be even (rotary embeddings turn pairs)"
    if cfg.training.seq_len > model.max_position_embeddings:
        yield (
            f"training.seq_len={cfg.training.seq_len}: exceeds "
            f"model.max_position_embeddings={model.max_position_embeddings}"
        )


def _optimizer_problems(cfg: RunConfig) -> Iterator[str]:
    optimizer = cfg.optimizer
    if optimizer.lr <= 0:
        yield f"optimizer.lr={optimizer.lr}: must be positive"
    yield from _at_least(cfg, 0, "optimizer.weight_decay")
    if isinstance(optimizer, AdamConfig):
        if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
            yield f"optimizer.betas={optimizer.betas}: must be two numbers in [0, 1)"
        if optimizer.eps <= 0:
            yield f"optimizer.eps={optimizer.eps}: must be positive"
    if isinstance(optimizer, SGDConfig | MuonConfig):
        if not 0 <= optimizer.momentum < 1:
            yield f"optimizer.momentum={optimizer.momentum}: must be in [0, 1)"
        if optimizer.nesterov and optimizer.momentum == 0:
            yield "optimizer.nesterov=true: needs optimizer.momentum > 0"
    if isinstance(optimizer, MuonConfig):
        yield from _at_least(cfg, 0, "optimizer.adamw_lr_scale")
        if not 1 <= optimizer.ns_steps < 100:
            yield f"optimizer.ns_steps={optimizer.ns_steps}: must be in [1, 100); 5 is usual"
    if cfg.scheduler.decay_beta2 is not None and not isinstance(optimizer, AdamConfig):
        yield f"scheduler.decay_beta2={cfg.scheduler.decay_beta2}: this optimizer has no beta2; use adamw, adam or muon"
    yield from _param_group_problems(optimizer)


def _param_group_problems(optimizer: OptimizerConfig) -> Iterator[str]:
    preset, rate = optimizer.group_preset, optimizer.layer_decay_rate
    shown = "null" if rate is None else rate
    if preset is GroupPreset.layerwise and (rate is None or not 0 < rate <= 1):
        yield f"optimizer.layer_decay_rate={shown}: group_preset=layerwise needs a rate in (0, 1], e.g. 0.9"
    if preset is not GroupPreset.layerwise and rate is not None:
        yield f"optimizer.layer_decay_rate={rate}: has an effect only with optimizer.group_preset=layerwise"
    if preset is not GroupPreset.by_type and optimizer.by_type != TypeScales():
        yield "optimizer.by_type: has an effect only with optimizer.group_preset=by_type"
    for kind, scales in asdict(optimizer.by_type).items():
        yield from _scale_problems(f"optimizer.by_type.{kind}", scales)
    for index, rule in enumerate(optimizer.groups):
        yield from _scale_problems(f"optimizer.groups[{index}]", asdict(rule))


def _scale_problems(where: str, values: dict[str, Any]) -> Iterator[str]:
    for key in ("lr_scale", "wd_scale"):
        value = values[key]
        if value is not None and not (value >= 0 and math.isfinite(value)):
            yield f"{where}.{key}={value}: must be a number of at least 0"


def _data_problems(cfg: RunConfig) -> Iterator[str]:
    yield from _at_least(cfg, 0, "data.min_emb_len", "data.num_workers")
    yield from _at_least(cfg, 1, "data.lookahead_limit", "data.prefetch_factor")
    yield from _at_least(cfg, 1, "data.index_processes")
    if not cfg.data.cache_budget_gib > 0:
        yield f"data.cache_budget_gib={cfg.data.cache_budget_gib}: must be positive; data.cache=lengths keeps no ids"
    if cfg.validation.enable and not cfg.data.valid_path:
        yield "data.valid_path=null: validation needs a split; give data.valid_path or validation.enable=false"
    yield from _mixture_problems(cfg)


def _mixture_problems(cfg: RunConfig) -> Iterator[str]:
    for index, source in enumerate(cfg.data.sources):
        if not (source.weight > 0 and math.isfinite(source.weight)):
            yield f"data.sources[{index}].weight={source.weight}: must be a positive number"
    names = source_names(cfg.data)
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"data.sources: {names.count(name)} sources are named {name}; give each a name of its own"
    if len(names) > 1 and not cfg.data.infinite:
        yield "data.infinite=false: a mixture has no end, since its sources end at different times; use infinite=true"


def _parallelism_problems(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """Also the batch's, which depends on the degrees."""
    yield from _at_least(cfg, 1, "parallelism.timeout_seconds")
    yield from _at_least(cfg, 0, "parallelism.fsdp_prefetch")
    try:
        degrees = parallel_degrees(cfg, world_size)
    except UserError as error:
        yield str(error)
        return
    yield from tensor_degree_problems(
        degrees.tensor,
        num_attention_heads=cfg.model.num_attention_heads,
        num_key_value_heads=cfg.model.num_key_value_heads,
        intermediate_size=cfg.model.intermediate_size,
    )
    model = cfg.model
    yield from uneven_rows_problems(
        degrees,
        {
            "model.vocab_size": model.vocab_size,
            "model.intermediate_size": model.intermediate_size,
            "model.num_attention_heads*head_dim": model.num_attention_heads * model.head_dim,
            "model.num_key_value_heads*head_dim": model.num_key_value_heads * model.head_dim,
        },
    )
    if degrees.tensor > 1:
        yield from _tensor_parallel_problems(cfg)
    if cfg.parallelism.cpu_offload and not degrees.fsdp:
        yield (
            "parallelism.cpu_offload=true: is done by FSDP2; give parallelism.data_parallel_shard_degree=-1 "
            "(parallelism=fsdp)"
        )
    yield from batch_problems(cfg.training.local_batch_size, cfg.training.global_batch_size, degrees.data_parallel)


def _tensor_parallel_problems(cfg: RunConfig) -> Iterator[str]:
    degree = f"parallelism.tensor_parallel_degree={cfg.parallelism.tensor_parallel_degree}"
    if cfg.model.loss_kernel is LossKernel.fused:
        yield f"model.loss_kernel=fused: needs the whole head, of which {degree} leaves a rank a part; use auto"
    if cfg.training.float8 is not Float8.none:
        yield f"training.float8={cfg.training.float8.value}: not with {degree}; use none, or a degree of 1"


def _training_problems(cfg: RunConfig) -> Iterator[str]:
    yield from _at_least(cfg, 0, "training.stop_after")
    yield from _at_least(cfg, 1, "training.steps", "training.local_batch_size")
    yield from _at_least(cfg, 2, "training.seq_len")
    yield from _at_least(cfg, 0, "training.max_norm", "training.max_anomalies", "training.seed", "data.seed")
    yield from _at_least(cfg, 16, "training.spike_window")
    sigmas = cfg.training.spike_sigmas
    if sigmas is not None and not sigmas > 0:
        yield f"training.spike_sigmas={sigmas}: must be positive, or null for no limit; 6 is usual"
    yield from _profile_problems(cfg)
    if cfg.training.anomaly is AnomalyAction.rewind and not cfg.checkpoint.enable:
        yield "training.anomaly=rewind: needs checkpoint.enable=true to have something to go back to; or use skip"


def _profile_problems(cfg: RunConfig) -> Iterator[str]:
    asked = cfg.training.profile_steps
    is_span = len(asked) == 2 and 1 <= asked[0] <= asked[1] <= cfg.training.steps
    if asked and not is_span:
        yield (
            f"training.profile_steps={asked}: must be [first, last] with 1 <= first <= last <= training.steps="
            f"{cfg.training.steps}, e.g. [10,12]; [] profiles none"
        )


def _cadence_problems(cfg: RunConfig) -> Iterator[str]:
    yield from _at_least(cfg, 1, "checkpoint.interval", "checkpoint.max_failures", "metrics.log_freq")
    yield from _at_least(cfg, 0, "checkpoint.keep_latest_k")
    if any(lr <= 0 for lr in cfg.checkpoint.at_lr):
        yield f"checkpoint.at_lr={cfg.checkpoint.at_lr}: learning rates must be positive"
    size = cfg.checkpoint.hf_export_shard_size
    if not _SIZE.fullmatch(size):
        yield f"checkpoint.hf_export_shard_size={size}: must be a size like 500MB or 2GB"
    if cfg.validation.enable:
        yield from _at_least(cfg, 1, "validation.freq", "validation.local_batch_size")
        if cfg.validation.steps < 1 and cfg.validation.steps != -1:
            yield f"validation.steps={cfg.validation.steps}: must be -1 (the whole split) or at least 1"


def _run_name_problems(cfg: RunConfig) -> Iterator[str]:
    name = cfg.run_name
    if name is not None and (not name or "/" in name or name.startswith(".")):
        yield f"run_name={name}: must be one folder name, without / and not starting with a dot"

"""The parts of a run, each made from the config; `runner` says when."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from molgen_pretrain.config.choices import InitMode, WandbMode
from molgen_pretrain.config.plain import cache_budget_bytes, cache_dir, compiles_blocks, data_seed, loss_kernel
from molgen_pretrain.config.preflight import Inputs
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.token_classes import TOKEN_CLASSES
from molgen_pretrain.metrics.console import ConsoleSink
from molgen_pretrain.metrics.jsonl import JsonlSink
from molgen_pretrain.metrics.logger import MetricsLogger, Sink
from molgen_pretrain.metrics.rows import Row
from molgen_pretrain.metrics.tensorboard import TensorBoardSink
from molgen_pretrain.metrics.throughput import Throughput, peak_flops
from molgen_pretrain.metrics.wandb import WandbSink
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, count_parameters, materialize
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.parallel.distributed import World
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.parallel.parallelize import Wrapping, parallelize
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.training.profiler import StepProfiler

logger = logging.getLogger(__name__)


def build_data(
    cfg: RunConfig, inputs: Inputs, *, rank: int, data_parallel_size: int, accumulation_steps: int
) -> tuple[JsonlTaggedPackedDataset, JsonlTaggedPackedDataset | None]:
    """Training and validation data, indexed (the one-time pass runs here) and reported."""
    dataset = partial(
        JsonlTaggedPackedDataset,
        tokenizer=inputs.tokenizer,
        seq_len=cfg.data.seq_len,
        cache_dir=cache_dir(cfg.data),
        rank=rank,
        world_size=data_parallel_size,
        seed=data_seed(cfg),
        min_emb_len=cfg.data.min_emb_len,
        lookahead_limit=cfg.data.lookahead_limit,
        overflow=cfg.data.overflow.value,
        on_bad_line=cfg.data.on_bad_line.value,
        cache=cfg.data.cache.value,
        cache_budget_bytes=cache_budget_bytes(cfg.data),
        index_processes=cfg.data.index_processes,
        document_mask=cfg.data.document_mask,
        token_classes=cfg.metrics.token_class_loss,
    )
    train = dataset(
        sources=inputs.train_sources,
        local_batch_size=cfg.training.local_batch_size,
        accumulation_steps=accumulation_steps,
        shuffle_lines=cfg.data.shuffle_lines,
        infinite=cfg.data.infinite,
        setting="data.train_path",
    )
    _log_data("train data", train)
    if not cfg.validation.enable:
        return train, None
    valid = dataset(
        paths=inputs.valid_files,
        local_batch_size=cfg.validation.local_batch_size,
        shuffle_lines=False,
        infinite=False,
        last_batch="pad",
        setting="data.valid_path",
    )
    _log_data("validation data", valid)
    return train, valid


def build_meta_model(cfg: RunConfig, inputs: Inputs, degrees: Degrees) -> tuple[Qwen3ForPretraining, Qwen3Arch]:
    """The model's shape and names, without memory for weights."""
    arch = Qwen3Arch(**cfg.model.sizes())
    pad_id = inputs.tokenizer.pad_id
    model = build_on_meta(
        arch.hf_config(eos_token_id=pad_id, pad_token_id=pad_id),
        loss_kernel=loss_kernel(cfg.model, degrees.tensor),
        loss_chunk_tokens=cfg.model.loss_chunk_tokens,
        fused_ops=cfg.model.fused_ops,
        document_mask=cfg.data.document_mask,
        loss_classes=len(TOKEN_CLASSES) if cfg.metrics.token_class_loss else 0,
    )
    return model, arch


def spread_model(model: Qwen3ForPretraining, cfg: RunConfig, layout: Layout, *, dtype: torch.dtype) -> nn.Module:
    """Spread a meta model over the ranks, in place; returns what training calls.

    It has random weights for init=scratch. For the other modes its memory is left as it is, for `restore` to fill.
    """
    given = cfg.parallelism
    wrapping = Wrapping(
        compute_dtype=dtype if layout.device.type == "cuda" else torch.float32,
        reshard_after_forward=given.fsdp_reshard_after_forward.value,
        activation_checkpointing=given.activation_checkpointing.value,
        compile=compiles_blocks(given, on_gpu=layout.device.type == "cuda"),
        prefetch=given.fsdp_prefetch,
        float8=cfg.training.float8.value,
        cpu_offload=given.cpu_offload,
    )
    load = None if cfg.init.mode is InitMode.scratch else _leave_to_restore
    fill = partial(materialize, model, device=layout.device, seed=cfg.training.seed, load=load)
    wrapped = parallelize(model, model.model.layers, layout, wrapping, fill=fill)
    parameters, compute = f"{count_parameters(model):,}", str(dtype).removeprefix("torch.")
    logger.info(
        "model: Qwen3, %s parameters, %s compute on %s: %s",
        parameters,
        compute,
        layout.device.type,
        layout.degrees.describe(),
    )
    return wrapped


def build_metrics(
    cfg: RunConfig,
    directory: RunDirectory,
    world: World,
    console: Console,
    *,
    resume_step: int,
    inherited: Sequence[Row] = (),
) -> MetricsLogger:
    """Rank 0 has the sinks; its losses and counts are of all ranks. Rows of the others differ in speed and memory.

    `inherited`: rows that stood in the directory before the run's first start, since it branches off another one.
    """
    metrics = cfg.metrics
    if not world.is_main:
        own = [JsonlSink(directory.rank_metrics(world.rank), resume_step=resume_step)]
        return MetricsLogger(own if metrics.save_for_all_ranks else [])
    sinks: list[Sink] = [
        ConsoleSink(cfg.training.steps, console if metrics.progress_bar else None),
        JsonlSink(directory.metrics, resume_step=resume_step),
    ]
    if metrics.tensorboard:
        sinks.append(TensorBoardSink(directory.tensorboard, resume_step=resume_step))
    if metrics.wandb is not WandbMode.disabled:
        sinks.append(
            WandbSink(
                directory.read_facts()["wandb_id"],
                mode=metrics.wandb.value,
                directory=directory.root,
                run_name=directory.name,
                project=metrics.wandb_project,
                entity=metrics.wandb_entity,
                group=metrics.wandb_group,
                config=asdict(cfg),
                inherited=inherited,
            )
        )
    return MetricsLogger(sinks)


def build_profiler(cfg: RunConfig, directory: RunDirectory, world: World) -> StepProfiler:
    """Of rank 0; of every rank where they all save metrics."""
    is_wanted = world.is_main or cfg.metrics.save_for_all_ranks
    steps = cfg.training.profile_steps if is_wanted else []
    return StepProfiler(steps, directory.profile, rank=world.rank, device=world.device)


def build_throughput(world: World, dtype: torch.dtype) -> Throughput:
    """Its limit is that of `dtype` also where the blocks multiply in float8: head and attention do not."""
    on_gpu = world.device.type == "cuda"
    return Throughput(
        devices=world.size,
        peak_flops=peak_flops(torch.cuda.get_device_name(), dtype) if on_gpu else None,
    )


def build_batches(
    cfg: RunConfig, inputs: Inputs, data: JsonlTaggedPackedDataset, world: World, *, position: dict[str, Any]
) -> DataLoader[Batch]:
    """The loader of the rank's micro-batches from `position` on; rank 0 logs the first sequence, decoded."""
    if position:
        data.start_at(position)
    if world.is_main and (first := next(iter(data), None)) is not None:
        logger.info("first sequence: %s", inputs.tokenizer.decode(first.input_ids[0].tolist()))
    return build_loader(
        data,
        num_workers=cfg.data.num_workers,
        pin_memory=cfg.data.pin_memory and world.device.type == "cuda",
        prefetch_factor=cfg.data.prefetch_factor,
        persistent_workers=cfg.data.persistent_workers,
    )


def _leave_to_restore(model: Qwen3ForPretraining) -> None:
    """Random weights would take a minute for a large model, and not stay."""


def _log_data(what: str, data: JsonlTaggedPackedDataset) -> None:
    summary = data.summary()
    logger.info("%s: %s", what, summary.describe())
    for line in summary.describe_sources():
        logger.info("source %s", line)
    if bad_lines := summary.describe_bad_lines():
        logger.warning("%s: %s", what, bad_lines)

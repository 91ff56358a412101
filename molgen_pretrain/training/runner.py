"""From a checked config to a finished run: builds every part, in the order of the log, and lets it train."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointSaveError
from molgen_pretrain.config.batch import accumulation_steps
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.config.preflight import Inputs
from molgen_pretrain.config.schema import (
    AdamWConfig,
    HfExport,
    Layout,
    ReshardAfterForward,
    RunConfig,
    WandbMode,
)
from molgen_pretrain.config.validate import data_parallel_degree
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.metrics.console import ConsoleSink
from molgen_pretrain.metrics.jsonl import JsonlSink
from molgen_pretrain.metrics.logger import MetricsLogger, Sink
from molgen_pretrain.metrics.tensorboard import TensorBoardSink
from molgen_pretrain.metrics.throughput import Throughput, peak_flops
from molgen_pretrain.metrics.wandb import WandbSink
from molgen_pretrain.model.flops import flops_per_token
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.qwen3 import (
    Qwen3Arch,
    Qwen3ForPretraining,
    build_on_meta,
    count_parameters,
    materialize,
)
from molgen_pretrain.optim.optimizer import build_adamw
from molgen_pretrain.optim.param_groups import split_param_groups
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.distributed import World, joined_world
from molgen_pretrain.parallel.parallelize import data_parallel_mesh, shard_model
from molgen_pretrain.schedules import Schedule
from molgen_pretrain.training.logs import RunLogs
from molgen_pretrain.training.precision import autocast_factory, compute_dtype
from molgen_pretrain.training.preemption import StopRequest
from molgen_pretrain.training.report import finish_report
from molgen_pretrain.training.restore import Restored, restore, saved_state
from molgen_pretrain.training.run_directory import RunDirectory, environment_facts, new_run_name
from molgen_pretrain.training.trainer import Hooks, Plan, Progress, Trainer
from molgen_pretrain.training.validation import Validator

logger = logging.getLogger(__name__)


def run(cfg: RunConfig, inputs: Inputs, *, resolved_yaml: str, overrides: Sequence[str]) -> None:
    """Train as configured. Exits with 128 + n where signal n stopped the run (after a save).

    Raises UserError for what only shows now: damaged checkpoints, a schedule that differs from the stored one.
    """
    with joined_world(
        cfg.training.device.value,
        needs_group=cfg.parallelism.layout is Layout.fsdp,
        timeout_seconds=cfg.parallelism.timeout_seconds,
    ) as world:
        signal_number = Runner(cfg, inputs, world).run(resolved_yaml, overrides)
    if signal_number:
        sys.exit(128 + signal_number)


class Runner:
    """One run in one process of the world."""

    def __init__(self, cfg: RunConfig, inputs: Inputs, world: World) -> None:
        self.cfg = cfg
        self.inputs = inputs
        self.world = world
        self.dp_size = data_parallel_degree(cfg, world.size)
        self.accumulation = accumulation_steps(
            cfg.training.local_batch_size, cfg.training.global_batch_size, self.dp_size
        )
        self.sharded = cfg.parallelism.layout is Layout.fsdp
        self.dtype = compute_dtype(cfg.training.dtype, world.device)
        self.autocast = autocast_factory(self.dtype, world.device, sharded=self.sharded)
        self.console = Console()
        self.began = time.monotonic()

    def run(self, resolved_yaml: str, overrides: Sequence[str]) -> int:
        """Everything, in order. Returns 0, or the signal that stopped the run."""
        logs = RunLogs(self.world.rank, self.console)
        try:
            schedule = self._build_schedule()
            train_data, valid_data = self._build_data()
            directory = self._make_directory(resolved_yaml, overrides)
            logs.open_file(directory.log(self.world.rank))
            with StopRequest() as stop:
                return self._train(schedule, train_data, valid_data, directory, stop)
        except Exception as error:
            logger.error("the run ends: %s", error)
            raise
        finally:
            logs.close()

    def _train(
        self,
        schedule: Schedule,
        train_data: JsonlTaggedPackedDataset,
        valid_data: JsonlTaggedPackedDataset | None,
        directory: RunDirectory,
        stop: StopRequest,
    ) -> int:
        model, arch = self._build_model()
        applier = self._build_optimizer(model, schedule)
        checkpointer = self._build_checkpointer(directory, schedule)
        restored = restore(self.cfg, checkpointer, model, applier, train_data)
        metrics = self._build_metrics(directory, restored)
        validator = self._build_validator(valid_data)
        throughput = self._build_throughput(arch)

        save = partial(self._save, checkpointer, directory, model, applier, train_data)
        trainer = Trainer(
            model=model,
            applier=applier,
            batches=self._build_batches(train_data, restored.progress),
            plan=self._build_plan(applier.schedule),
            progress=restored.progress,
            hooks=Hooks(validate=partial(self._validate, validator, model, metrics), save=save),
            metrics=metrics,
            throughput=throughput,
            stop=stop,
            world=self.world,
            data_parallel_size=self.dp_size,
            autocast=self.autocast,
            locate=partial(_locate, train_data),
        )
        status = "failed"
        try:
            signal_number = trainer.train()
            if signal_number:
                logger.info("stopped by signal %d after step %d; the same command with run_name=%s continues",
                            signal_number, restored.progress.step, directory.name)  # fmt: skip
            else:
                self._finish(directory, checkpointer, trainer, validator)
            status = "stopped" if signal_number else "finished"
            return signal_number
        finally:
            metrics.close(exit_code=int(status == "failed"))
            if self.world.is_main:
                directory.update_facts(status=status, step=restored.progress.step)

    # Building, in the order of the log.

    def _build_schedule(self) -> Schedule:
        schedule = build_schedule(self.cfg.scheduler)
        logger.info("schedule: %s", schedule.describe())
        return schedule

    def _build_data(self) -> tuple[JsonlTaggedPackedDataset, JsonlTaggedPackedDataset | None]:
        cfg = self.cfg
        dataset = partial(
            JsonlTaggedPackedDataset,
            tokenizer=self.inputs.tokenizer,
            seq_len=cfg.data.seq_len,
            cache_dir=Path(cfg.data.cache_dir).expanduser(),
            rank=self.world.rank,
            world_size=self.dp_size,
            seed=cfg.training.seed if cfg.data.seed is None else cfg.data.seed,
            min_emb_len=cfg.data.min_emb_len,
            lookahead_limit=cfg.data.lookahead_limit,
            overflow=cfg.data.overflow.value,
            on_bad_line=cfg.data.on_bad_line.value,
        )
        train = dataset(
            paths=self.inputs.train_files,
            local_batch_size=cfg.training.local_batch_size,
            accumulation_steps=self.accumulation,
            shuffle_lines=cfg.data.shuffle_lines,
            infinite=cfg.data.infinite,
            setting="data.train_path",
        )
        _log_data("train data", train)
        if not cfg.validation.enable:
            return train, None
        valid = dataset(
            paths=self.inputs.valid_files,
            local_batch_size=cfg.validation.local_batch_size,
            shuffle_lines=False,
            infinite=False,
            last_batch="pad",
            setting="data.valid_path",
        )
        _log_data("validation data", valid)
        return train, valid

    def _make_directory(self, resolved_yaml: str, overrides: Sequence[str]) -> RunDirectory:
        name = self.world.broadcast(self.cfg.run_name or new_run_name(self.cfg.description))
        directory = RunDirectory(Path(self.cfg.paths.runs).expanduser().absolute() / name)
        if self.world.is_main:
            directory.root.mkdir(parents=True, exist_ok=True)
            directory.write_config(resolved_yaml, overrides)
            run_id = directory.read_facts().get("run_id") or secrets.token_hex(8)
            directory.update_facts(
                run_id=run_id,
                run_name=name,
                wandb_id=run_id,
                status="running",
                world_size=self.world.size,
                device=str(self.world.device.type),
                **environment_facts(),
            )
        self.world.barrier()
        logger.info("run directory: %s", directory.root)
        return directory

    def _build_model(self) -> tuple[Qwen3ForPretraining, Qwen3Arch]:
        fields = asdict(self.cfg.model)
        chunk_tokens = fields.pop("loss_chunk_tokens")
        arch = Qwen3Arch(**fields)
        pad_id = self.inputs.tokenizer.pad_id
        model = build_on_meta(arch.hf_config(eos_token_id=pad_id, pad_token_id=pad_id), loss_chunk_tokens=chunk_tokens)
        if self.sharded:
            shard_model(
                model,
                model.model.layers,
                data_parallel_mesh(self.world.device, self.world.size),
                compute_dtype=self.dtype if self.world.device.type == "cuda" else torch.float32,
                reshard_after_forward=self.cfg.parallelism.fsdp_reshard_after_forward is not ReshardAfterForward.never,
            )
        materialize(model, device=self.world.device, seed=self.cfg.training.seed)
        logger.info(
            "model: Qwen3, %s parameters, %s compute, %s on %d x %s",
            f"{count_parameters(model):,}", str(self.dtype).removeprefix("torch."), self.cfg.parallelism.layout.value,
            self.world.size, self.world.device.type,
        )  # fmt: skip
        return model, arch

    def _build_optimizer(self, model: Qwen3ForPretraining, schedule: Schedule) -> ScheduleApplier:
        cfg = self.cfg.optimizer
        assert isinstance(cfg, AdamWConfig)  # the only choice of the group
        groups = split_param_groups(model, decay_norms_and_biases=cfg.decay_norms_and_biases)
        optimizer = build_adamw(groups, betas=cfg.betas, eps=cfg.eps, fused=cfg.fused)
        for group in groups:
            count = sum(p.numel() for p in group.parameters)
            logger.info("optimizer: adamw group %s, %s parameters, lr x %g, weight decay x %g",
                        group.name, f"{count:,}", group.lr_scale, group.wd_scale)  # fmt: skip
        return ScheduleApplier(optimizer, schedule)

    def _build_checkpointer(self, directory: RunDirectory, schedule: Schedule) -> Checkpointer:
        return Checkpointer(
            directory.checkpoints,
            keep_latest_k=self.cfg.checkpoint.keep_latest_k,
            milestones=schedule.milestones,
        )

    def _build_metrics(self, directory: RunDirectory, restored: Restored) -> MetricsLogger:
        """Only rank 0 has sinks; the numbers are of all ranks."""
        if not self.world.is_main:
            return MetricsLogger([])
        cfg, step = self.cfg.metrics, restored.progress.step
        sinks: list[Sink] = [
            ConsoleSink(self.cfg.training.steps, self.console if cfg.progress_bar else None),
            JsonlSink(directory.metrics, resume_step=step),
        ]
        if cfg.tensorboard:
            sinks.append(TensorBoardSink(directory.tensorboard, resume_step=step))
        if cfg.wandb is not WandbMode.disabled:
            sinks.append(
                WandbSink(
                    directory.read_facts()["wandb_id"],
                    mode=cfg.wandb.value,
                    directory=directory.root,
                    run_name=directory.name,
                    project=cfg.wandb_project,
                    entity=cfg.wandb_entity,
                    group=cfg.wandb_group,
                    config=asdict(self.cfg),
                )
            )
        return MetricsLogger(sinks)

    def _build_validator(self, data: JsonlTaggedPackedDataset | None) -> Validator | None:
        if data is None:
            return None
        steps = self.cfg.validation.steps
        return Validator(
            data,
            device=self.world.device,
            vocab_size=self.cfg.model.vocab_size,
            max_batches=None if steps == -1 else steps,
            autocast=self.autocast,
        )

    def _build_throughput(self, arch: Qwen3Arch) -> Throughput:
        on_gpu = self.world.device.type == "cuda"
        return Throughput(
            devices=self.world.size,
            flops_per_token=flops_per_token(arch, self.cfg.training.seq_len),
            peak_flops=peak_flops(torch.cuda.get_device_name(), self.dtype) if on_gpu else None,
        )

    def _build_batches(self, data: JsonlTaggedPackedDataset, progress: Progress) -> DataLoader[Batch]:
        if progress.position:
            data.start_at(progress.position)
        if self.world.is_main:
            _log_first_sequence(data, self.inputs)
        cfg = self.cfg.data
        return build_loader(
            data,
            num_workers=cfg.num_workers,
            pin_memory=cfg.pin_memory and self.world.device.type == "cuda",
            prefetch_factor=cfg.prefetch_factor,
            persistent_workers=cfg.persistent_workers,
        )

    def _build_plan(self, schedule: Schedule) -> Plan:
        cfg = self.cfg
        return Plan(
            steps=cfg.training.steps,
            accumulation_steps=self.accumulation,
            max_norm=cfg.training.max_norm,
            log_freq=cfg.metrics.log_freq,
            validation_freq=cfg.validation.freq if cfg.validation.enable else 0,
            checkpoint_interval=cfg.checkpoint.interval if cfg.checkpoint.enable else 0,
            milestones=frozenset(schedule.milestones),
            seed=cfg.training.seed,
        )

    # What the loop calls.

    def _validate(
        self, validator: Validator | None, model: Qwen3ForPretraining, metrics: MetricsLogger, step: int
    ) -> None:
        if validator is not None:
            metrics.log({"kind": "validation", "step": step, **validator.evaluate(model)})

    def _save(
        self,
        checkpointer: Checkpointer,
        directory: RunDirectory,
        model: Qwen3ForPretraining,
        applier: ScheduleApplier,
        data: JsonlTaggedPackedDataset,
        progress: Progress,
    ) -> None:
        step = progress.step
        try:
            checkpointer.save(
                step,
                model=model,
                optimizer=applier.optimizer,
                state=saved_state(self.cfg, progress, applier.schedule, data),
            )
        except CheckpointSaveError as error:
            if step == self.cfg.training.steps:
                raise
            logger.error("checkpoint of step %d failed, the run goes on and tries again at the next: %s", step, error)
            return
        policy = self.cfg.checkpoint.hf_export
        if policy is HfExport.every or (policy is HfExport.milestones and step in applier.schedule.milestones):
            self._export(directory, model, step)

    def _export(self, directory: RunDirectory, model: Qwen3ForPretraining, step: int) -> None:
        target = directory.hf_export(step)
        export_hf(model, self.cfg.data.tokenizer, target, is_writer=self.world.is_main)
        self.world.barrier()
        logger.info("hf export: %s", target)

    def _finish(
        self,
        directory: RunDirectory,
        checkpointer: Checkpointer,
        trainer: Trainer,
        validator: Validator | None,
    ) -> None:
        step = trainer.progress.step
        if self.cfg.checkpoint.enable and checkpointer.newest() != step:
            trainer.hooks.save(trainer.progress)  # data that ended early, or a resumed run with nothing left to do
        if self.cfg.checkpoint.hf_export is not HfExport.never and not directory.hf_export(step).exists():
            self._export(directory, trainer.model, step)  # type: ignore[arg-type]
        if self.world.is_main:
            finish_report(
                directory,
                self.console,
                milestones=trainer.applier.schedule.milestones,
                unigram_entropy=validator.unigram_entropy if validator else None,
                hf_export=directory.hf_export(step),
                wall_seconds=time.monotonic() - self.began,
            )


def _log_data(what: str, data: JsonlTaggedPackedDataset) -> None:
    summary = data.summary()
    logger.info("%s: %s", what, summary.describe())
    if bad_lines := summary.describe_bad_lines():
        logger.warning("%s: %s", what, bad_lines)


def _locate(data: JsonlTaggedPackedDataset, batch: Batch) -> list[str]:
    return [line for unit_ids in batch.unit_ids for line in data.locate(unit_ids)]


def _log_first_sequence(data: JsonlTaggedPackedDataset, inputs: Inputs) -> None:
    """What is trained, for the user's eyes: the first sequence of this start, decoded."""
    first = next(iter(data), None)
    if first is not None:
        logger.info("first sequence: %s", inputs.tokenizer.decode(first.input_ids[0].tolist()))

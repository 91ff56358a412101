"""From a checked config to a finished run: builds every part, in the order of the log, and lets it train."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.checkpoint.errors import CheckpointSaveError
from molgen_pretrain.config.advice import advise
from molgen_pretrain.config.batch import accumulation_steps
from molgen_pretrain.config.choices import HfExport, Layout
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.config.preflight import Inputs
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.validate import data_parallel_degree
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.metrics.logger import MetricsLogger
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.distributed import World, joined_world
from molgen_pretrain.schedules import Schedule
from molgen_pretrain.training.build import (
    build_batches,
    build_data,
    build_meta_model,
    build_metrics,
    build_throughput,
    fill_model,
)
from molgen_pretrain.training.logs import RunLogs
from molgen_pretrain.training.optimizer_from_config import optimizer_from_config, param_groups_from_config
from molgen_pretrain.training.plan import Plan, Progress
from molgen_pretrain.training.precision import autocast_factory, compute_dtype
from molgen_pretrain.training.preemption import StopRequest
from molgen_pretrain.training.report import finish_report
from molgen_pretrain.training.restore import restore, saved_state
from molgen_pretrain.training.run_directory import RunDirectory, environment_facts, new_run_name
from molgen_pretrain.training.trainer import Hooks, Trainer
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
        self.data_parallel_size = data_parallel_degree(cfg, world.size)
        self.accumulation_steps = accumulation_steps(
            cfg.training.local_batch_size, cfg.training.global_batch_size, self.data_parallel_size
        )
        self.sharded = cfg.parallelism.layout is Layout.fsdp
        self.dtype = compute_dtype(cfg.training.dtype, world.device)
        self.autocast = autocast_factory(self.dtype, world.device, sharded=self.sharded)
        self.console = Console()
        self.began = time.monotonic()

    def run(self, resolved_yaml: str, overrides: Sequence[str]) -> int:
        """Everything, in order. Returns 0, or the signal that stopped the run."""
        logs = RunLogs(self.world.rank, self.console)
        directory: RunDirectory | None = None
        try:
            schedule = build_schedule(self.cfg.scheduler)
            logger.info("schedule: %s", schedule.describe())
            for line in advise(self.cfg, schedule):
                logger.warning("%s", line)
            model, arch = build_meta_model(self.cfg, self.inputs)
            # Made again with the optimizer; here a rule without effect is an error before the data pass.
            param_groups_from_config(self.cfg.optimizer, model)
            train_data, valid_data = build_data(
                self.cfg,
                self.inputs,
                self.world,
                data_parallel_size=self.data_parallel_size,
                accumulation_steps=self.accumulation_steps,
            )
            directory = self._make_directory(resolved_yaml, overrides)
            logs.open_file(directory.log(self.world.rank))
            with StopRequest(announces=self.world.is_main) as stop:
                return self._train(model, arch, schedule, train_data, valid_data, directory, stop)
        except Exception as error:
            logs.leave_console()  # the command line prints the error itself
            logger.error("the run ends: %s", error)
            if directory is not None and self.world.is_main:
                directory.update_facts(status="failed")
            raise
        finally:
            logs.close()

    def _train(
        self,
        model: Qwen3ForPretraining,
        arch: Qwen3Arch,
        schedule: Schedule,
        train_data: JsonlTaggedPackedDataset,
        valid_data: JsonlTaggedPackedDataset | None,
        directory: RunDirectory,
        stop: StopRequest,
    ) -> int:
        cfg, world = self.cfg, self.world
        fill_model(model, cfg, world, dtype=self.dtype, sharded=self.sharded)
        applier = ScheduleApplier(optimizer_from_config(cfg.optimizer, model), schedule)
        for line in applier.describe_groups():
            logger.info("optimizer group %s", line)
        checkpointer = Checkpointer(directory.checkpoints, keep_latest_k=cfg.checkpoint.keep_latest_k)
        progress = restore(cfg, checkpointer, model, applier, train_data)
        metrics = build_metrics(cfg, directory, world, self.console, resume_step=progress.step)
        validator = self._build_validator(valid_data)
        trainer = Trainer(
            model=model,
            applier=applier,
            batches=build_batches(cfg, self.inputs, train_data, world, position=progress.position),
            plan=self._build_plan(),
            progress=progress,
            hooks=Hooks(
                validate=partial(self._validate, validator, model, metrics),
                save=partial(self._save, checkpointer, directory, model, applier, train_data),
            ),
            metrics=metrics,
            throughput=build_throughput(cfg, arch, world, dtype=self.dtype),
            stop=stop,
            world=world,
            data_parallel_size=self.data_parallel_size,
            autocast=self.autocast,
            locate=partial(_locate, train_data),
        )
        exit_code = 1
        try:
            signal_number = trainer.train()
            if not signal_number:
                self._keep_result(directory, trainer, model)
            exit_code = 0
        finally:
            metrics.close(exit_code)
        if world.is_main:
            directory.update_facts(status="stopped" if signal_number else "finished", step=progress.step)
        if signal_number:
            again = f"the same command with run_name={directory.name} continues"
            logger.info("stopped by signal %d after step %d; %s", signal_number, progress.step, again)
        elif world.is_main:
            finish_report(
                directory,
                milestones=applier.schedule.milestones,
                unigram_entropy=validator.unigram_entropy if validator else None,
                hf_export=directory.hf_export(progress.step),
                wall_seconds=time.monotonic() - self.began,
            )
        return signal_number

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
                device=self.world.device.type,
                **environment_facts(),
            )
        self.world.barrier()
        logger.info("run directory: %s", directory.root)
        return directory

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

    def _build_plan(self) -> Plan:
        cfg = self.cfg
        return Plan(
            steps=cfg.training.steps,
            accumulation_steps=self.accumulation_steps,
            max_norm=cfg.training.max_norm,
            log_freq=cfg.metrics.log_freq,
            validation_freq=cfg.validation.freq if cfg.validation.enable else 0,
            checkpoint_interval=cfg.checkpoint.interval if cfg.checkpoint.enable else 0,
            snapshot_lrs=tuple(cfg.checkpoint.at_lr),
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
        kept: frozenset[int],
    ) -> bool:
        """Checkpoint, and export where that is wanted. False, on every rank, where storage failed."""
        step = progress.step
        checkpointer.milestones = kept
        state = saved_state(self.cfg, progress, applier, data)
        try:
            checkpointer.save(step, model=model, optimizer=applier.optimizer, state=state)
        except CheckpointSaveError as error:
            logger.error("the run goes on and saves again at the next checkpoint: %s", error)
            return False
        policy = self.cfg.checkpoint.hf_export
        is_milestone = step in applier.schedule.milestones
        if policy is HfExport.every or (policy is HfExport.milestones and is_milestone):
            self._export(directory, model, step)
        return True

    def _export(self, directory: RunDirectory, model: Qwen3ForPretraining, step: int) -> None:
        target = directory.hf_export(step)
        export_hf(model, self.cfg.data.tokenizer, target, is_writer=self.world.is_main)
        self.world.barrier()
        logger.info("hf export: %s", target)

    def _keep_result(self, directory: RunDirectory, trainer: Trainer, model: Qwen3ForPretraining) -> None:
        """The last step is saved and exported, also where data ended early or nothing was left to train.

        Raises CheckpointSaveError on every rank where the last step cannot be saved.
        """
        step = trainer.progress.step
        if self.cfg.checkpoint.enable and trainer.saved_step != step and not trainer.save():
            raise CheckpointSaveError(f"step {step}, the last, could not be saved; the log has the reason")
        # As rank 0 sees it: the export is collective, and a shared file system may tell others later.
        exported = self.world.broadcast(directory.hf_export(step).exists())
        if self.cfg.checkpoint.hf_export is not HfExport.never and not exported:
            self._export(directory, model, step)


def _locate(data: JsonlTaggedPackedDataset, batch: Batch) -> list[str]:
    return [line for unit_ids in batch.unit_ids for line in data.locate(unit_ids)]

"""From a checked config to a finished run: builds every part, in the order of the log, and lets it train."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from molgen_pretrain.config.advice import advise
from molgen_pretrain.config.batch import accumulation_steps
from molgen_pretrain.config.choices import Float8
from molgen_pretrain.config.plain import build_schedule, runs_dir
from molgen_pretrain.config.preflight import Inputs
from molgen_pretrain.config.schema import RunConfig, world_size_from_env
from molgen_pretrain.config.validate import parallel_degrees
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.logger import MetricsLogger
from molgen_pretrain.metrics.rows import Row, read_rows
from molgen_pretrain.model.flops import step_flops
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.parallel.distributed import World, joined_world
from molgen_pretrain.parallel.float8 import require_float8
from molgen_pretrain.parallel.layout import build_layout
from molgen_pretrain.run_directory import RunDirectory, environment_facts, new_run_name
from molgen_pretrain.run_lock import held_run
from molgen_pretrain.schedules import Schedule
from molgen_pretrain.signals import Interrupted, StopRequest
from molgen_pretrain.training.anomaly import AnomalyPolicy
from molgen_pretrain.training.build import (
    build_batches,
    build_data,
    build_meta_model,
    build_metrics,
    build_profiler,
    build_throughput,
    spread_model,
)
from molgen_pretrain.training.logs import RunLogs
from molgen_pretrain.training.optimizer_from_config import optimizer_from_config, param_groups_from_config
from molgen_pretrain.training.plan import Plan
from molgen_pretrain.training.precision import autocast_factory, compute_dtype, make_deterministic
from molgen_pretrain.training.report import finish_report
from molgen_pretrain.training.run_checkpoints import RunCheckpoints
from molgen_pretrain.training.trainer import Hooks, Trainer
from molgen_pretrain.training.update import GradientComputer
from molgen_pretrain.training.validation import Validator

logger = logging.getLogger(__name__)

_DYING_SECONDS = 60.0  # that a predecessor of the same run may take to end


def run(cfg: RunConfig, inputs: Inputs, *, resolved_yaml: str, overrides: Sequence[str]) -> None:
    """Train as configured. Exits with 128 + n where signal n stopped the run (after a save).

    Raises UserError for what only shows now: damaged checkpoints, a schedule that differs from the stored one.
    """
    degrees = parallel_degrees(cfg, world_size_from_env())
    if cfg.training.deterministic:
        make_deterministic()
    with joined_world(
        cfg.training.device.value,
        needs_group=degrees.fsdp,
        timeout_seconds=cfg.parallelism.timeout_seconds,
    ) as world:
        signal_number = Runner(cfg, inputs, world, degrees).run(resolved_yaml, overrides)
    if signal_number:
        sys.exit(128 + signal_number)


class Runner:
    """One run in one process of the world."""

    def __init__(self, cfg: RunConfig, inputs: Inputs, world: World, degrees: Degrees) -> None:
        self.cfg = cfg
        self.inputs = inputs
        self.world = world
        self.layout = build_layout(degrees, rank=world.rank, device=world.device)
        self.accumulation_steps = accumulation_steps(
            cfg.training.local_batch_size, cfg.training.global_batch_size, degrees.data_parallel
        )
        self.dtype = compute_dtype(cfg.training.dtype, world.device)
        self.autocast = autocast_factory(self.dtype, world.device, sharded=degrees.fsdp)
        self.console = Console()
        self._held = ExitStack()  # the lock of the run directory
        self._inherited: Sequence[Row] = ()
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
            model, arch = build_meta_model(self.cfg, self.inputs, self.layout.degrees)
            # Both once more when they are needed; here a mistake is an error before the data pass.
            param_groups_from_config(self.cfg.optimizer, model)
            if self.cfg.training.float8 is not Float8.none:
                require_float8(self.cfg.training.float8.value, self.layout)
            train_data, valid_data = build_data(
                self.cfg,
                self.inputs,
                rank=self.layout.data_parallel_rank,
                data_parallel_size=self.layout.data_parallel_size,
                accumulation_steps=self.accumulation_steps,
            )
            directory = self._make_directory(resolved_yaml, overrides)
            logs.open_file(directory.log(self.world.rank))
            self.world.peers.call_before_exit(partial(self._note, directory, status="failed"))
            return self._train(model, arch, schedule, train_data, valid_data, directory)
        except (Exception, Interrupted) as error:
            logs.leave_console()  # the command line prints the error itself
            logger.error("the run ends: %s", error)
            if directory is not None:
                status = "stopped" if isinstance(error, Interrupted) else "failed"
                self._note(directory, status=status, error=str(error))
            raise
        finally:
            logs.close()
            self._held.close()

    def _train(
        self,
        model: Qwen3ForPretraining,
        arch: Qwen3Arch,
        schedule: Schedule,
        train_data: JsonlTaggedPackedDataset,
        valid_data: JsonlTaggedPackedDataset | None,
        directory: RunDirectory,
    ) -> int:
        cfg, world = self.cfg, self.world
        wrapped = spread_model(model, cfg, self.layout, dtype=self.dtype)
        applier = ScheduleApplier(optimizer_from_config(cfg.optimizer, model), schedule)
        for line in applier.describe_groups():
            logger.info("optimizer group %s", line)
        gradients = GradientComputer(
            wrapped,
            layout=self.layout,
            max_norm=cfg.training.max_norm,
            seed=cfg.training.seed,
            autocast=self.autocast,
            activity=world.peers.activity,
        )
        with ExitStack() as stack:
            checkpoints = stack.enter_context(RunCheckpoints(cfg, directory, world, model, applier, train_data))
            progress = checkpoints.restore(self.inputs.hf_start)
            # From here on there is something to keep.
            stop = stack.enter_context(StopRequest(announces=world.is_main, is_lost=world.peers.are_lost))
            metrics = build_metrics(
                cfg, directory, world, self.console, resume_step=progress.step, inherited=self._inherited
            )
            validator = self._build_validator(valid_data, gradients, stop)
            profiler = stack.enter_context(build_profiler(cfg, directory, world))
            trainer = Trainer(
                profiler=profiler,
                gradients=gradients,
                applier=applier,
                batches=build_batches(cfg, self.inputs, train_data, world, position=progress.position),
                plan=self._build_plan(),
                anomalies=self._build_anomaly_policy(),
                progress=progress,
                hooks=Hooks(
                    validate=partial(_validate, validator, model, metrics),
                    is_validated=partial(_is_validated, world, directory),
                    save=checkpoints.save,
                    rewind=partial(checkpoints.rewind, metrics),
                    describe=partial(_describe, train_data),
                ),
                metrics=metrics,
                throughput=build_throughput(world, self.dtype),
                flops=partial(step_flops, arch),
                stop=stop,
                world=world,
            )
            exit_code = 1
            try:
                # Innermost, so that log, metrics and a save under way hear of a lost rank by its cause.
                with world.peers.explained():
                    signal_number = trainer.train()
                    is_paused = not signal_number and trainer.is_paused
                    is_finished = not (signal_number or is_paused)
                    checkpoints.keep_last(progress, trainer.kept, is_finished=is_finished, is_paused=is_paused)
                exit_code = 0
            finally:
                metrics.close(exit_code)
            self._close(directory, trainer, validator, signal_number)
        return signal_number

    def _close(
        self, directory: RunDirectory, trainer: Trainer, validator: Validator | None, signal_number: int
    ) -> None:
        """Say how the run ended, in its directory and to whoever watches."""
        step = trainer.progress.step
        self._note(directory, status="stopped" if signal_number or trainer.is_paused else "finished", step=step)
        again = f"started again (run_name={directory.name}) it goes on"
        if signal_number:
            logger.info("stopped by signal %d after step %d; %s", signal_number, step, again)
        elif trainer.is_paused:
            logger.info("training.stop_after=%d: ended after step %d; %s", self.cfg.training.stop_after, step, again)
        elif self.world.is_main:
            finish_report(
                directory,
                milestones=trainer.applier.schedule.milestones,
                unigram_entropy=validator.unigram_entropy if validator else None,
                hf_export=directory.hf_export(step),
                wall_seconds=time.monotonic() - self.began,
            )

    def _note(self, directory: RunDirectory, **facts: Any) -> None:
        """In run.json how the run ended, which a full disk must not hide."""
        if self.world.is_main:
            try:
                directory.update_facts(**facts)
            except OSError as error:
                logger.warning("%s does not say so: %s", directory.facts, error)

    def _make_directory(self, resolved_yaml: str, overrides: Sequence[str]) -> RunDirectory:
        root: Path | None = None
        if self.world.is_main:
            root = self._claim_root()
            self._held.enter_context(held_run(root, wait_seconds=_DYING_SECONDS))
        directory = RunDirectory(self.world.broadcast(root))
        if self.world.is_main:
            directory.write_config(resolved_yaml, overrides)
            run_id = directory.read_facts().get("run_id")
            if run_id is None and directory.metrics.exists():
                self._inherited = read_rows(directory.metrics)
            run_id = run_id or secrets.token_hex(8)
            directory.update_facts(
                run_id=run_id,
                run_name=directory.name,
                wandb_id=run_id,
                status="running",
                error=None,
                world_size=self.world.size,
                device=self.world.device.type,
                **environment_facts(),
            )
        self.world.barrier()
        logger.info("run directory: %s", directory.root)
        return directory

    def _claim_root(self) -> Path:
        """The run's folder, made if need be; one whose name is made up here is nobody else's."""
        runs = runs_dir(self.cfg.paths)
        try:
            if self.cfg.run_name:
                root = runs / self.cfg.run_name
                root.mkdir(parents=True, exist_ok=True)
                return root
            runs.mkdir(parents=True, exist_ok=True)
            return _make_new(lambda: runs / new_run_name(self.cfg.description))
        except OSError as error:
            raise UserError(f"paths.runs={self.cfg.paths.runs}: {error}; give a folder that can be written") from error

    def _build_validator(
        self, data: JsonlTaggedPackedDataset | None, gradients: GradientComputer, stop: StopRequest
    ) -> Validator | None:
        if data is None:
            return None
        steps = self.cfg.validation.steps
        return Validator(
            data,
            layout=self.layout,
            vocab_size=self.cfg.model.vocab_size,
            max_batches=None if steps == -1 else steps,
            autocast=self.autocast,
            stop_agreed=lambda: gradients.agree_on_signal(stop.signal) > 0,
        )

    def _build_plan(self) -> Plan:
        cfg = self.cfg
        return Plan(
            steps=cfg.training.steps,
            stop_after=cfg.training.stop_after,
            accumulation_steps=self.accumulation_steps,
            log_freq=cfg.metrics.log_freq,
            validation_freq=cfg.validation.freq if cfg.validation.enable else 0,
            checkpoint_interval=cfg.checkpoint.interval if cfg.checkpoint.enable else 0,
            snapshot_lrs=tuple(cfg.checkpoint.at_lr),
        )

    def _build_anomaly_policy(self) -> AnomalyPolicy:
        training = self.cfg.training
        return AnomalyPolicy(
            action=training.anomaly,
            limit=training.max_anomalies,
            spike_sigmas=training.spike_sigmas,
            spike_window=training.spike_window,
        )


def _make_new(candidate: Callable[[], Path]) -> Path:
    """Make the first candidate that is not there yet; making is what decides between two that ask at once."""
    while True:
        path = candidate()
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _validate(validator: Validator | None, model: Qwen3ForPretraining, metrics: MetricsLogger, step: int) -> bool:
    """Whether it came to its end."""
    if validator is None:
        return True
    values = validator.evaluate(model)
    if values is not None:
        metrics.log({"kind": "validation", "step": step, **values})
    return values is not None


def _is_validated(world: World, directory: RunDirectory, step: int) -> bool:
    """Whether metrics.jsonl has the validation of this step, as rank 0 sees it."""
    rows = read_rows(directory.metrics) if world.is_main and directory.metrics.exists() else []
    return world.broadcast(any((row.get("kind"), row.get("step")) == ("validation", step) for row in rows))


def _describe(data: JsonlTaggedPackedDataset, batch: Batch) -> list[str]:
    """The lines of each sequence of a batch, for people who look for the bad one: `a:1, a:7`."""
    return [", ".join(data.locate(unit_ids)) for unit_ids in batch.unit_ids]

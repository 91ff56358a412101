"""The training loop. Everything it uses is built elsewhere (runner.py)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from torch.profiler import record_function

from molgen_pretrain.config.choices import AnomalyAction
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.prefetch import DevicePrefetcher
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.logger import MetricsLogger
from molgen_pretrain.metrics.throughput import Throughput
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.distributed import World
from molgen_pretrain.schedules import Schedule, WSDAdaptive, decay_crossings
from molgen_pretrain.signals import StopRequest
from molgen_pretrain.training.anomaly import AnomalyError, AnomalyPolicy, Suspect, origin, update_guard
from molgen_pretrain.training.plan import Plan, Progress
from molgen_pretrain.training.profiler import StepProfiler
from molgen_pretrain.training.rows import Interval, train_row
from molgen_pretrain.training.update import GradientComputer, StepInFlight, StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls at certain steps; the runner decides what they do."""

    validate: Callable[[int], bool]  # step -> whether it came to its end, rather than to a stop
    is_validated: Callable[[int], bool]  # whether that was done before this process began
    save: Callable[[Progress, frozenset[int]], float]  # with the steps whose checkpoints stay -> seconds it took
    rewind: Callable[[Progress], None]  # model, optimizer and progress as at the last good checkpoint
    describe: Callable[[Batch], list[str]]  # the lines that each sequence of a micro-batch holds


class Trainer:
    """Runs updates from `progress.step` + 1 to `plan.last_step`, or to a stop that all ranks agree on.

    Whoever calls it saves the last step: `progress` says which that is. `flops(tokens=, attention_pairs=)` are those
    of the model, forward and backward; without them no share of the hardware's limit is logged.
    """

    def __init__(
        self,
        *,
        gradients: GradientComputer,
        applier: ScheduleApplier,
        batches: Iterable[Batch],
        plan: Plan,
        anomalies: AnomalyPolicy,
        progress: Progress,
        hooks: Hooks,
        metrics: MetricsLogger,
        throughput: Throughput,
        stop: StopRequest,
        world: World,
        profiler: StepProfiler,
        flops: Callable[..., float] | None = None,
    ) -> None:
        self.gradients = gradients
        self.applier = applier
        self.batches = DevicePrefetcher(batches, world.device)
        self.plan = plan
        self.anomalies = anomalies
        self.progress = progress
        self.hooks = hooks
        self.metrics = metrics
        self.throughput = throughput
        self.stop = stop
        self.world = world
        self.profiler = profiler
        self.activity = world.peers.activity
        self._steps = plan.steps
        self._interval = Interval(flops)
        self._guard = update_guard(anomalies, applier.optimizer, world.device)
        self._lag = 0 if self._guard is None else 1
        self._in_flight: deque[StepInFlight] = deque()  # launched and not settled, the oldest first
        self._follow(applier.schedule)

    def train(self) -> int:
        """Run to the end. Returns 0, or the number of the signal that stopped the run early.

        With a guard a step is launched before the host knows how the one before it went, unless something is to be
        done between the two. Raises AnomalyError on every rank, with weights that no harmful step has moved, where
        one may not be survived.
        """
        if signal := self._catch_up():
            return signal
        self.throughput.start()
        while self.progress.step < self.plan.last_step:
            step = self.progress.step + len(self._in_flight) + 1
            with self.profiler.around(step, is_plain=not self._is_followed(step)):
                micro_batches = self._next_micro_batches(step)
                if micro_batches:
                    self._launch(step, micro_batches)
                elif not self._in_flight:
                    ended = "the data ended after step %d of %d (data.infinite=false)"
                    logger.warning(ended, step - 1, self.plan.steps)
                    break
                if signal := self._settle(leave=0 if not micro_batches or self._is_awaited(step) else self._lag):
                    return signal
        return 0

    @property
    def is_paused(self) -> bool:
        """Whether it ended where `plan.stop_after` says, with steps left."""
        return self.plan.last_step <= self.progress.step < self.plan.steps

    @property
    def kept(self) -> frozenset[int]:
        """Steps whose checkpoints stay: milestones, and where a decay reaches certain learning rates."""
        return self._kept

    def _next_micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of one update on this device; empty where the data has ended (on all ranks)."""
        self.activity.enter(step, "data")
        with self.throughput.waiting(), record_function("data"):
            return self.batches.take(self.plan.accumulation_steps)

    def _launch(self, step: int, micro_batches: list[Batch]) -> None:
        """Hand a step to the device: with a guard the update too, else only its gradient."""
        self.applier.prepare(step)
        flight = self.gradients.launch(step, micro_batches, stop=self.stop, details=self._is_logged(step))
        self._in_flight.append(flight)
        if self._guard is not None:
            self._guard.watch(flight.loss_sum, flight.grad_norm)
            self._update(step)
        if step < self.plan.last_step:
            self.activity.enter(step + 1, "data")
            with self.throughput.waiting(), record_function("data"):  # though a GPU computes meanwhile
                self.batches.fetch(self.plan.accumulation_steps)

    def _settle(self, *, leave: int) -> int:
        """Find out how the steps in flight went, until `leave` are left, and do what is due after them.

        Returns the signal that ends the run here, or 0. A harmful step, and what was launched after it, has not
        happened.
        """
        signal = 0
        while len(self._in_flight) > (0 if signal else leave):
            flight = self._in_flight.popleft()
            result = self.gradients.resolve(flight)
            if problem := self.anomalies.judge(self.progress, result.loss, result.grad_norm):
                self._leave_out(flight, problem, result)
                return 0
            if self._guard is None:
                self._update(flight.step)
            self._count(flight, result)
            signal = signal or result.stop_signal
        return 0 if self._in_flight else self._between_steps(self.progress.step, signal)

    def _update(self, step: int) -> None:
        """Let the optimizer follow the gradient."""
        self.activity.enter(step, "optimizer")
        self.applier.optimizer.step()
        self.applier.optimizer.zero_grad(set_to_none=True)

    def _count(self, flight: StepInFlight, result: StepResult) -> None:
        """Take a step as done."""
        progress, last = self.progress, flight.micro_batches[-1]
        progress.step = flight.step
        progress.position = last.position.state_dict()
        progress.tokens += result.tokens
        progress.sequences += result.sequences
        progress.truncated_units += result.truncated
        progress.dropped_units += result.dropped
        self.anomalies.accept(progress, result.loss, result.grad_norm)
        self.throughput.step()
        self._interval.add(result)
        if flight.has_details:
            self._log(flight.step, result, last)
            self._decide(flight.step, result.loss)

    def _is_logged(self, step: int) -> bool:
        return self.plan.logs_at(step, self._milestones)

    def _is_awaited(self, step: int) -> bool:
        """Whether something is to be done between this step and the next."""
        return self._is_logged(step) or self._is_followed(step) or step == self.plan.last_step

    def _is_followed(self, step: int) -> bool:
        """Whether a validation or a save comes between this step and the next."""
        return self.plan.validates_at(step, self._milestones) or self.plan.saves_at(step, self._kept)

    def _catch_up(self) -> int:
        """The validation that a stop has kept from its end. Returns the signal that does so again, or 0."""
        progress = self.progress
        # Done already where it was caught up with once before, and then the process was killed.
        progress.validation_is_due = progress.validation_is_due and not self.hooks.is_validated(progress.step)
        return self._validate(progress.step) if progress.validation_is_due else 0

    def _between_steps(self, step: int, stop_signal: int) -> int:
        """Validation and checkpoint, where they are due. Returns the signal that ends the run here, or 0."""
        self.progress.validation_is_due = self.plan.validates_at(step, self._milestones)
        with self.throughput.paused():
            if self.progress.validation_is_due and not stop_signal:
                stop_signal = self._validate(step)
            if self.plan.saves_at(step, self._kept):
                self._interval.stall_seconds += self.hooks.save(self.progress, self._kept)
        # After the last step only its validation is left to stop.
        return stop_signal if step < self.plan.last_step or self.progress.validation_is_due else 0

    def _validate(self, step: int) -> int:
        """Returns the signal that has cut it short, or 0."""
        self.activity.enter(step, "validation")
        is_done = self.hooks.validate(step)
        self.progress.validation_is_due = not is_done
        return 0 if is_done else self.gradients.agree_on_signal(self.stop.signal)

    def _log(self, step: int, result: StepResult, last: Batch) -> None:
        self.metrics.log(
            {
                **train_row(step, result, last, self.applier, self.progress),
                **self._interval.take(self.throughput, self.world.device),
            }
        )

    def _leave_out(self, flight: StepInFlight, problem: str, result: StepResult) -> None:
        """Go on without a harmful batch: its gradient is dropped, the optimizer has not moved.

        Raises AnomalyError, on every rank, where that is not wanted or has been done too often.
        """
        self.applier.optimizer.zero_grad(set_to_none=True)
        policy, progress, step = self.anomalies, self.progress, flight.step
        blame = f"step {step}: {problem}. {self._origin(flight.micro_batches, result)}"
        if policy.action is AnomalyAction.stop:
            self._stop(f"{blame}; stopped before the optimizer moved, the weights are those of step {step - 1}")
        if progress.anomalies >= policy.limit:
            self._stop(f"{blame}; training.max_anomalies={policy.limit}: this is one more, the run ends")
        progress.anomalies += 1
        progress.position = flight.micro_batches[-1].position.state_dict()
        number = f"anomaly {progress.anomalies} of at most {policy.limit}"
        logger.warning("%s; %s: the batch is left out, the optimizer untouched", blame, number)
        self._take_back()
        if policy.action is AnomalyAction.rewind:
            self.hooks.rewind(progress)
            self._follow(self.applier.schedule)

    def _take_back(self) -> None:
        """The steps in flight behind a harmful one were none: their batches come again."""
        while self._in_flight:
            self.batches.put_back(self._in_flight.pop().micro_batches)
        if self._guard is not None:
            self._guard.clear()

    def _origin(self, micro_batches: Sequence[Batch], result: StepResult) -> str:
        """Where a global batch stands in the order, and the lines of those of its micro-batches that look worst."""
        end = micro_batches[-1].position.sequences
        suspects = [
            Suspect(loss, self.hooks.describe(batch))
            for batch, loss in zip(micro_batches, result.micro_losses, strict=True)
        ]
        found = [suspect for of_rank in self.world.gather(suspects) for suspect in of_rank]
        return (
            f"The global batch is sequences {end - result.sequences} to {end - 1} of the order, from 0."
            f" The batch came from: {origin(found)}"
        )

    def _stop(self, reason: str) -> NoReturn:
        """End the run on every rank, with the state kept that the harmful step has found."""
        try:
            if self.progress.step:
                self.hooks.save(self.progress, self._kept)
        except UserError as trouble:  # with storage: not what the run ends for
            logger.error("%s", trouble)
        raise AnomalyError(reason)

    def _decide(self, step: int, loss: float) -> None:
        """Let an adaptive schedule begin its decay after this step; every rank sees the same losses."""
        schedule = self.applier.schedule
        if not isinstance(schedule, WSDAdaptive) or schedule.decay_start is not None:
            return
        self.progress.losses = [*self.progress.losses, loss][-schedule.window :]
        if self.world.broadcast(schedule.decides(self.progress.losses, step)):
            self._follow(schedule.with_decay_start(step))
            logger.info("the decay begins after step %d: %s", step, self.applier.schedule.describe())

    def _follow(self, schedule: Schedule) -> None:
        """Train by `schedule` from the next update on; a decay that was decided early ends the run early."""
        self.applier.schedule = schedule
        is_decided = isinstance(schedule, WSDAdaptive) and schedule.decay_start is not None
        steps = min(self._steps, schedule.milestones[-1]) if is_decided else self._steps
        self.plan = replace(self.plan, steps=steps)
        self._milestones = frozenset(schedule.milestones)
        self._kept = self._milestones.union(decay_crossings(schedule, self.plan.snapshot_lrs, self.plan.steps))

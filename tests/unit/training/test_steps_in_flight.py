"""Steps that are launched before the result of the last one is known: the same weights and rows as one by one."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from molgen_pretrain.config.choices import AnomalyAction
from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.position import Position, SourcePosition
from molgen_pretrain.metrics.logger import MetricsLogger, Sink
from molgen_pretrain.metrics.throughput import Throughput
from molgen_pretrain.model.loss import LossSums
from molgen_pretrain.optim.guard import UpdateGuard
from molgen_pretrain.optim.optimizer import build_optimizer
from molgen_pretrain.optim.param_groups import ParamGroup
from molgen_pretrain.optim.scheduler import ScheduleApplier
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.parallel.distributed import World
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.schedules import Constant
from molgen_pretrain.signals import StopRequest
from molgen_pretrain.training import trainer as trainer_module
from molgen_pretrain.training.anomaly import AnomalyError, AnomalyPolicy, update_guard
from molgen_pretrain.training.plan import Plan, Progress
from molgen_pretrain.training.profiler import StepProfiler
from molgen_pretrain.training.trainer import Hooks, Trainer
from molgen_pretrain.training.update import GradientComputer

CPU = torch.device("cpu")
STEPS = 10
WORD = 7  # a token that makes the loss NaN


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(8, 6), nn.Linear(6, 8)

    def forward(self, input_ids: Tensor, labels: Tensor, *_: Any) -> LossSums:
        logits = self.head(self.embed(input_ids)).flatten(0, 1)
        total = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        return LossSums(total * (math.nan if (input_ids == WORD).any() else 1.0), None)


def micro_batches(bad: set[int]) -> list[Batch]:
    """Two for each global batch; those of the numbers in `bad` (from 1) hold the word in the second."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(3 * STEPS):
        ids = torch.randint(0, WORD, (2, 5), generator=generator)
        if number % 2 and number // 2 + 1 in bad:
            ids[1, 3] = WORD
        end = 4 * (number // 2 + 1)
        batch = Batch(
            input_ids=ids,
            labels=ids.roll(-1, 1),
            position_ids=None,
            unit_borders=None,
            token_classes=None,
            unit_ids=[],
            tokens=10,
            padding=0,
            trained=10,
            class_tokens=None,
            attention_pairs=30,
            truncated=0,
            dropped=0,
            position=Position({"": SourcePosition(offset=end, sequences=end)}),
            epoch=number / 100,
            source_epochs={},
        )
        made.append(batch)
    return made


class Listener(Activity):
    """Keeps what it is told; signals arrive when the forward of certain steps begins."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, str]] = []
        self.stops: dict[int, StopRequest] = {}

    def enter(self, step: int, phase: str) -> None:
        super().enter(step, phase)
        self.seen.append((step, phase))
        if phase == "forward" and step in self.stops:
            self.stops.pop(step).signal = signal.SIGTERM


class Rows(Sink):
    name = "rows"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: Any) -> None:
        rates = ("second", "frac", "memory", "stall")
        self.rows.append({name: value for name, value in row.items() if not any(rate in name for rate in rates)})

    def rewind(self, step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] <= step]


class Run:
    """A run in one process that keeps in memory what it saves; it can be started again."""

    def __init__(self, action: AnomalyAction, *, is_ahead: bool) -> None:
        self.action, self.is_ahead = action, is_ahead
        self.sink, self.activity, self.stop = Rows(), Listener(), StopRequest()
        self.checkpoints: dict[int, dict[str, Any]] = {}
        self.validated: list[int] = []
        self.stopped_after: list[int] = []
        self.error = ""

    def start(self, batches: Sequence[Batch], monkeypatch: pytest.MonkeyPatch) -> int:
        guard: Callable[..., Any] = (lambda policy, *rest: UpdateGuard(*rest)) if self.is_ahead else update_guard
        monkeypatch.setattr(trainer_module, "update_guard", guard)
        self.model, self.progress = Model(), Progress()
        groups = [ParamGroup("all", tuple(self.model.named_parameters()))]
        optimizer = build_optimizer("adamw", groups, fused=None, betas=(0.9, 0.95), eps=1e-8)
        assert UpdateGuard.fits(optimizer, CPU)
        self.applier = ScheduleApplier(optimizer, Constant(lr_max=0.01, warmup_steps=2))
        if self.checkpoints:
            self.restore(self.progress)
            # Four sequences are a global batch of two micro-batches.
            batches = batches[Position.from_state_dict(self.progress.position).sequences // 2 :]
        trainer = Trainer(
            profiler=StepProfiler([], Path(), rank=0, device=CPU),
            gradients=GradientComputer(
                self.model,
                layout=Layout(Degrees(1, 1, 1, fsdp=False), 0, CPU, None, None),
                max_norm=1.0,
                seed=0,
                autocast=nullcontext,
                activity=self.activity,
            ),
            applier=self.applier,
            batches=batches,
            plan=Plan(
                steps=STEPS,
                stop_after=None,
                accumulation_steps=2,
                log_freq=5,
                validation_freq=6,
                checkpoint_interval=4,
                snapshot_lrs=(),
            ),
            anomalies=AnomalyPolicy(action=self.action, limit=3, spike_sigmas=None, spike_window=8),
            progress=self.progress,
            hooks=Hooks(
                validate=lambda step: self.validated.append(step) or True,
                is_validated=lambda step: step in self.validated,
                save=lambda progress, kept: self.save(progress),
                rewind=self.rewind,
                describe=lambda batch: ["line"],
            ),
            metrics=MetricsLogger([self.sink]),
            throughput=Throughput(),
            stop=self.stop,
            world=World(0, 1, 0, CPU),
        )
        stopped_by = trainer.train()
        self.save(self.progress)
        return stopped_by

    def save(self, progress: Progress) -> float:
        model, optimizer = self.model.state_dict(), self.applier.optimizer.state_dict()
        self.checkpoints[progress.step] = copy.deepcopy({"model": model, "optimizer": optimizer, "progress": progress})
        return 0.0

    def restore(self, progress: Progress) -> Progress:
        stored = copy.deepcopy(self.checkpoints[max(self.checkpoints)])
        self.model.load_state_dict(stored["model"])
        self.applier.optimizer.load_state_dict(stored["optimizer"])
        vars(progress).update(vars(stored["progress"]))
        return stored["progress"]

    def rewind(self, progress: Progress) -> None:
        now = copy.deepcopy(progress)
        if not self.checkpoints:
            raise AnomalyError("no checkpoint to go back to")
        now.go_back_to(self.restore(progress))
        vars(progress).update(vars(now))
        self.sink.rewind(progress.step)

    def outcome(self) -> dict[str, Any]:
        """All that a user may find of it; tensors as lists."""
        plain = {step: as_lists(saved) for step, saved in self.checkpoints.items()}
        return {"checkpoints": plain, "rows": self.sink.rows, "validated": self.validated, "error": self.error}


def as_lists(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run to its end, whatever that is; started again as often as signals stop it."""

    def run_of_(action: AnomalyAction, bad: set[int], *, is_ahead: bool, signals: Sequence[int] = ()) -> Run:
        run = Run(action, is_ahead=is_ahead)
        run.activity.stops = dict.fromkeys(signals, run.stop)
        try:
            while stopped_by := run.start(micro_batches(bad), monkeypatch):
                assert stopped_by == signal.SIGTERM
                run.stopped_after.append(run.progress.step)
                run.stop.signal = 0
        except AnomalyError as error:
            run.error = str(error)
        return run

    return run_of_


@pytest.mark.parametrize("action", list(AnomalyAction))
def test_harmful_steps_at_any_place(run_of: Callable[..., Run], action: AnomalyAction) -> None:
    """One, or two in a row: before, at and after steps that log, validate, save or end the run."""
    for bad in (set(), *({step} for step in range(1, STEPS + 1)), {2, 3}, {6, 7}, {7, 8}, {7, 9}):
        one_by_one, ahead = (run_of(action, bad, is_ahead=is_ahead) for is_ahead in (False, True))
        assert ahead.outcome() == one_by_one.outcome(), bad
        has_checkpoint = action is AnomalyAction.rewind and min(bad, default=0) > 4
        assert bool(ahead.error) == (bool(bad) and action is not AnomalyAction.skip and not has_checkpoint)


def test_a_step_is_launched_before_the_last_result_is_read_where_nothing_is_due_between(
    run_of: Callable[..., Run],
) -> None:
    # 1 and 5 are logged, before 4 ends it is saved, before 6 ends it is validated.
    for is_ahead, order in ((False, "L1R1L2R2L3R3L4R4L5R5L6R6"), (True, "L1R1L2L3R2L4R3R4L5R5L6R6")):
        run = run_of(AnomalyAction.stop, set(), is_ahead=is_ahead)
        letters = {"gradient norm": "L", "results": "R"}
        seen = [f"{letters[phase]}{step}" for step, phase in run.activity.seen if phase in letters and step <= 6]
        assert "".join(seen) == order


def test_signals_at_any_step_lose_and_repeat_none(run_of: Callable[..., Run]) -> None:
    untouched = run_of(AnomalyAction.skip, {5}, is_ahead=False)
    for step in range(1, STEPS):
        run = run_of(AnomalyAction.skip, {5}, is_ahead=True, signals=[step])
        assert run.stopped_after in ([step], [step + 1])
        assert run.sink.rows == untouched.sink.rows
        assert run.validated == untouched.validated
        assert as_lists(run.checkpoints[STEPS]) == as_lists(untouched.checkpoints[STEPS])


def test_spikes_and_some_optimizers_are_judged_one_by_one() -> None:
    """By the host, before the optimizer moves: without a guard."""
    meta = torch.device("meta")  # not a CPU, which has no guard at all
    groups = [ParamGroup("all", tuple(Model().to(meta).named_parameters()))]
    adamw = build_optimizer("adamw", groups, fused=True, betas=(0.9, 0.95), eps=1e-8)
    adam = build_optimizer("adam", groups, fused=True, betas=(0.9, 0.95), eps=1e-8)
    loop = build_optimizer("adamw", groups, fused=False, betas=(0.9, 0.95), eps=1e-8)
    sgd = build_optimizer("sgd", groups, fused=True, momentum=0.9, nesterov=False)

    def has_guard(optimizer: torch.optim.Optimizer, device: torch.device = meta, sigmas: float | None = None) -> bool:
        policy = AnomalyPolicy(action=AnomalyAction.skip, limit=3, spike_sigmas=sigmas, spike_window=8)
        return update_guard(policy, optimizer, device) is not None

    assert [has_guard(optimizer) for optimizer in (adamw, adam, loop, sgd)] == [True, True, False, False]
    assert not has_guard(adamw, sigmas=6.0)
    assert not has_guard(adamw, device=torch.device("cuda")), "weights stay elsewhere"

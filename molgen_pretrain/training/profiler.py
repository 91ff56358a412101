"""Profiles a few steps of a run: a Chrome trace, and a table of where the time goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function

from molgen_pretrain.metrics.trace import STEP_REGION, profile_of, read_trace
from molgen_pretrain.metrics.trace_text import profile_line, profile_text

logger = logging.getLogger(__name__)


class StepProfiler:
    """Profiles the steps of `profile_steps` ([first, last], or none), and writes the results into `folder`.

    The loop runs each step in `around(step)`. The step before the first one warms the profiler up. A run that goes
    on from a later step profiles what is left. A validation or a save ends the profile before its step: its
    operators would be many times those of training. As a context manager it ends a profile that the run cuts short.
    """

    def __init__(self, profile_steps: Sequence[int], folder: Path, *, rank: int, device: torch.device) -> None:
        self._first, self._last = profile_steps or (0, 0)  # steps count from 1
        self._folder = folder
        self._rank = rank
        self._device = device
        self._profile: profile | None = None
        self._steps: list[int] = []  # profiled so far
        self._is_over = not profile_steps

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None and not self._is_over:
            self._finish(writes=error is None)

    def around(self, step: int, *, is_plain: bool = True) -> AbstractContextManager[None]:
        """For the body of the loop. `is_plain`: nothing but training is done in it.

        Where the profile ends, the files are written, which takes seconds.
        """
        if self._is_over or step < self._first - 1:
            return nullcontext()
        if step < self._first:
            if is_plain:
                self._warm_up()
        elif step > self._last:
            logger.warning("%s: the run is at step %d, there is nothing left to profile", self._wanted, step)
            self._is_over = True
        elif is_plain:
            return self._profiled(step)
        else:
            logger.warning("%s: step %d validates or saves, and is left out", self._wanted, step)
            if self._steps:
                self._finish(writes=True)
        return nullcontext()

    @property
    def _wanted(self) -> str:
        return f"training.profile_steps=[{self._first}, {self._last}]"

    @contextmanager
    def _profiled(self, step: int) -> Iterator[None]:
        if not self._steps:
            self._warm_up()
            self._record()
        self._steps.append(step)
        with record_function(f"{STEP_REGION}{step}"):
            yield
        if step == self._last:
            self._finish(writes=True)

    def _warm_up(self) -> None:
        if self._profile is not None:
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=lambda part: ProfilerAction.RECORD if part else ProfilerAction.WARMUP,
        )
        self._profile.start()

    def _record(self) -> None:
        assert self._profile is not None, "record before warm-up"
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # kernels of earlier steps are none of ours
        self._profile.step()

    def _finish(self, *, writes: bool) -> None:
        assert self._profile is not None, "finish before warm-up"
        self._is_over = True
        self._profile.stop()  # lets the device finish, too
        if not (writes and self._steps):
            return
        try:
            self._write(self._profile)
        except OSError as error:
            logger.warning("the profile of step %d and later is not written: %s", self._steps[0], error)

    def _write(self, finished: profile) -> None:
        rank = f".rank{self._rank}" if self._rank else ""
        base = self._folder / f"steps-{self._steps[0]}-{self._steps[-1]}{rank}"
        trace, table = base.with_name(f"{base.name}.json.gz"), base.with_name(f"{base.name}.txt")
        self._folder.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(trace))
        found = profile_of(read_trace(trace))
        where = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "CPU"
        table.write_text(profile_text(found, f"{where}, rank {self._rank}"))
        logger.info("profile: %s; table: %s, trace for chrome://tracing: %s", profile_line(found), table, trace)

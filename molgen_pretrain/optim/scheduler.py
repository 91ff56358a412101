"""The object that applies a schedule; it has no state but what the schedule says of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from molgen_pretrain.errors import UserError
from molgen_pretrain.schedules import Phase, Schedule

# What a user sets for a group, in torch's names, besides betas.
_SETTINGS = ("lr_scale", "wd_scale", "eps", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")


class ScheduleApplier:
    """Writes learning rate, weight decay and beta2 of an update into an optimizer's groups.

    `schedule` may be replaced at any step. The betas that the optimizer was built with are taken here, before a
    checkpoint is loaded into it, so that a resume in the middle of a decay does not mistake the decay's beta2
    for the optimizer's own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self._betas = [group.get("betas") for group in optimizer.param_groups]  # None: the optimizer has none

    def prepare(self, step: int) -> None:
        """Set every group to the values of update `step` (counted from 1), before the update runs."""
        values = self.group_values(step)
        beta2 = self.schedule.beta2(step)
        for group, betas in zip(self.optimizer.param_groups, self._betas, strict=True):
            group["lr"], group["weight_decay"] = values[group["name"]]
            if betas is not None:
                group["betas"] = betas if beta2 is None else (betas[0], beta2)

    def group_values(self, step: int) -> dict[str, tuple[float, float]]:
        """Learning rate and weight decay of every group, by its name, in update `step`."""
        lr, weight_decay = self.schedule.lr(step), self.schedule.weight_decay(step)
        return {
            group["name"]: (lr * group["lr_scale"], weight_decay * group["wd_scale"])
            for group in self.optimizer.param_groups
        }

    def describe_groups(self) -> list[str]:
        """A line per group for the log: how many parameters, lr and weight decay at step 1 and after the warmup."""
        peak = _first_step_after_warmup(self.schedule)
        first, then = self.group_values(1), self.group_values(peak)
        lines = []
        for group in self.optimizer.param_groups:
            name, count = group["name"], _count(group)
            (lr, wd), (peak_lr, peak_wd) = first[name], then[name]
            rates = f"{lr:.4g} at step 1" + (f", {peak_lr:.4g} at step {peak}" if peak > 1 else "")
            decay = f"{wd:g}" if wd == peak_wd else f"{wd:g} at step 1, {peak_wd:g} at step {peak}"
            lines.append(f"{name}: {count:,} parameters, lr {rates}; weight decay {decay}")
        return lines

    def group_settings(self) -> dict[str, dict[str, Any]]:
        """What each group was built with, by its name, as JSON values: all but lr and weight decay."""
        settings = {}
        for group, betas in zip(self.optimizer.param_groups, self._betas, strict=True):
            own = {key: group[key] for key in _SETTINGS if key in group}
            own |= {} if betas is None else {"betas": list(betas)}
            settings[group["name"]] = {"parameters": _count(group), **own}
        return settings

    def adopt_group_settings(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `group_settings` returned in an earlier run.

        Raises UserError where that run's groups were others: they are made before a checkpoint is read.
        """
        theirs, ours = ({n: s["parameters"] for n, s in each.items()} for each in (stored, self.group_settings()))
        if theirs != ours:
            raise UserError(
                f"scheduler.on_resume=use_checkpoint: its parameter groups are {_sizes(theirs)}, here they are "
                f"{_sizes(ours)}; give the optimizer settings that it was trained with, or on_resume=override"
            )
        for index, group in enumerate(self.optimizer.param_groups):
            settings = dict(stored[group["name"]])
            if "betas" in settings:
                self._betas[index] = tuple(settings["betas"])
            group.update({key: settings[key] for key in _SETTINGS if key in settings})


def _count(group: Mapping[str, Any]) -> int:
    return sum(parameter.numel() for parameter in group["params"])


def _sizes(groups: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count:,} parameters)" for name, count in groups.items())


def _first_step_after_warmup(schedule: Schedule) -> int:
    beginning = schedule.piece(1)
    return beginning.last + 1 if beginning.phase is Phase.WARMUP and beginning.last is not None else 1

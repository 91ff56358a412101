"""Steps that would do harm: a loss or gradient that is not finite, or far above what is usual."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch

from molgen_pretrain.config.choices import AnomalyAction
from molgen_pretrain.errors import SharedError
from molgen_pretrain.optim.guard import UpdateGuard
from molgen_pretrain.training.plan import Progress

# Fewer values say little about what is usual.
_FEWEST_FOR_SPIKES = 16
_LISTED_SEQUENCES = 32


class AnomalyError(SharedError):
    """The run ends before a harmful update; the weights are still those of the step before."""


@dataclass(frozen=True, kw_only=True)
class AnomalyPolicy:
    """`action`: stop, skip the batch, or rewind to the last checkpoint. `limit`: anomalies that a run survives.

    `spike_sigmas`: how many standard deviations above the mean of the last `spike_window` steps a loss or gradient
    norm counts as an anomaly; None: only values that are not finite do.
    """

    action: AnomalyAction
    limit: int
    spike_sigmas: float | None
    spike_window: int

    def judge(self, progress: Progress, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step, in words, or None. The same on every rank, whose values are the same."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss is {loss}, gradient norm {grad_norm}"
        if self.spike_sigmas is None or len(progress.recent) < _FEWEST_FOR_SPIKES:
            return None
        for number, (name, value) in enumerate((("loss", loss), ("gradient norm", grad_norm))):
            usual = [pair[number] for pair in progress.recent]
            mean = math.fsum(usual) / len(usual)
            deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in usual) / len(usual))
            if value > mean + self.spike_sigmas * deviation:
                return (
                    f"{name} is {value:.6g}, more than {self.spike_sigmas:g} standard deviations ({deviation:.3g})"
                    f" above the mean of the last {len(usual)} steps ({mean:.6g})"
                )
        return None

    def accept(self, progress: Progress, loss: float, grad_norm: float) -> None:
        """Remember the values of a good step, as far as later judgements need them."""
        if self.spike_sigmas is not None:
            progress.recent = [*progress.recent, (loss, grad_norm)][-self.spike_window :]


def update_guard(policy: AnomalyPolicy, optimizer: torch.optim.Optimizer, device: torch.device) -> UpdateGuard | None:
    """What lets a step be launched before the result of the one before it is known.

    None where that has to be waited for: spikes are judged by the host, and not every optimizer heeds a guard; or
    where there is nothing to gain, on a CPU, whose work is done when it has been launched.
    """
    if device.type == "cpu" or policy.spike_sigmas is not None or not UpdateGuard.fits(optimizer, device):
        return None
    return UpdateGuard(optimizer, device)


class Suspect(NamedTuple):
    """A micro-batch of a harmful step: its mean loss, and of each of its sequences the lines that it holds."""

    loss: float
    sequences: list[str]


def origin(suspects: Collection[Suspect]) -> str:
    """Where a harmful batch comes from: the micro-batches whose loss is not finite, else the highest losses first."""
    broken = [suspect for suspect in suspects if not math.isfinite(suspect.loss)]
    ordered = broken or sorted(suspects, key=lambda suspect: -suspect.loss)
    # Ranks of one tensor-parallel group name the same sequences.
    lines = list(dict.fromkeys(line for suspect in ordered for line in suspect.sequences))
    shown, hidden = lines[:_LISTED_SEQUENCES], len(lines) - _LISTED_SEQUENCES
    return "; ".join(shown) + (f"; and {hidden} more sequences" if hidden > 0 else "")

"""The gradient of one global batch, the same however ranks and micro-batches split it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.metrics.reduce import reduce_max, reduce_sums
from molgen_pretrain.model.loss import IGNORE_INDEX, LossSums
from molgen_pretrain.optim.optimizer import clip_grad_norm
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.parallel.parallelize import gradient_sync
from molgen_pretrain.signals import StopRequest
from molgen_pretrain.training.class_loss import class_counts, class_row, named_sums


@dataclass(frozen=True)
class StepResult:
    """One global batch, over all ranks. `max_loss` and `class_losses` only where details were asked for."""

    loss: float
    grad_norm: float
    tokens: int
    sequences: int
    positions: int  # tokens and padding
    padding: int
    truncated: int
    dropped: int
    stop_signal: int  # the highest that any rank was sent; 0: none
    max_loss: float | None
    class_losses: dict[str, float]
    micro_losses: list[Tensor]  # mean of each micro-batch of this rank


class GradientComputer:
    """Forward and backward passes of a model; leaves the clipped gradient for the optimizer."""

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Layout,
        max_norm: float,
        seed: int,
        autocast: Callable[[], AbstractContextManager[object]],
        activity: Activity,
    ) -> None:
        self.model = model
        self._layout = layout
        self._max_norm = max_norm
        self._seed = seed
        self._autocast = autocast
        self._activity = activity

    def compute(self, step: int, micro_batches: Sequence[Batch], *, stop: StopRequest, details: bool) -> StepResult:
        """The gradient of update number `step`, and what all ranks together know of it. Collective.

        `details`: also the highest loss of a micro-batch, and the losses by token class where batches have classes.
        """
        # Whatever randomness a model may come to have depends on the step alone: resuming needs no stored state.
        torch.manual_seed(_step_seed(self._seed, step, self._layout.data_parallel_rank))
        counts = self._reduce(_counts(micro_batches, details))
        losses = [
            self._backward(step, batch, counts["tokens"], is_last=batch is micro_batches[-1]) for batch in micro_batches
        ]
        self._activity.enter(step, "gradient norm")
        grad_norm = float(clip_grad_norm(self.model.parameters(), self._max_norm))
        signal = stop.signal  # as late as possible: a step may take a minute
        totals = self._reduce(_loss_sums(losses), signals=float(signal > 0))
        micro_losses = [
            sums.total / (batch.labels != IGNORE_INDEX).sum().clamp(min=1)
            for sums, batch in zip(losses, micro_batches, strict=True)
        ]
        return StepResult(
            loss=totals["loss"] / counts["tokens"],
            grad_norm=grad_norm,
            tokens=int(counts["tokens"]),
            sequences=int(counts["sequences"]),
            positions=int(counts["positions"]),
            padding=int(counts["padding"]),
            truncated=int(counts["truncated"]),
            dropped=int(counts["dropped"]),
            stop_signal=self.agree_on_signal(signal) if totals["signals"] else 0,
            max_loss=self._max_loss(micro_losses) if details else None,
            class_losses=class_row(counts, totals) if details and losses[0].by_class is not None else {},
            micro_losses=micro_losses,
        )

    def agree_on_signal(self, signal: int) -> int:
        """The highest number of a signal that any rank was sent; 0 if none was. Collective."""
        return int(reduce_max({"signal": float(signal)}, device=self._layout.device)["signal"])

    def _backward(self, step: int, batch: Batch, tokens: float, *, is_last: bool) -> LossSums:
        """Accumulate the gradient of one micro-batch; return its sums, detached."""
        with gradient_sync(self.model, is_last=is_last):
            self._activity.enter(step, "forward")
            with self._autocast():
                sums = self.model(batch.input_ids, batch.labels, batch.position_ids, batch.token_classes)
            self._activity.enter(step, "backward")
            # Summed gradients are divided by the ranks; multiplying by them leaves sum / tokens.
            (sums.total * (self._layout.data_parallel_size / tokens)).backward()
        return LossSums(sums.total.detach(), sums.by_class)

    def _reduce(self, values: dict[str, float | Tensor], **of_every_rank: float) -> dict[str, float]:
        """Sums over data-parallel ranks; `of_every_rank` also over those that see another one's batches."""
        # Zeros rather than a smaller group: one collective serves both, and a NaN stays one.
        weight = 1.0 if self._layout.counts_data else 0.0
        return reduce_sums({**{k: v * weight for k, v in values.items()}, **of_every_rank}, device=self._layout.device)

    def _max_loss(self, micro_losses: Sequence[Tensor]) -> float:
        """Highest mean loss of any micro-batch on any rank: one bad batch shows here before it does in loss."""
        return reduce_max({"max_loss": torch.stack(list(micro_losses)).max()}, device=self._layout.device)["max_loss"]


def _counts(micro_batches: Sequence[Batch], details: bool) -> dict[str, float | Tensor]:
    """What the global batch holds; known before the forward, since the gradient of every micro-batch is weighted
    by the tokens of all."""
    counts: dict[str, float | Tensor] = {
        "tokens": torch.stack([(b.labels != IGNORE_INDEX).sum() for b in micro_batches]).sum(),
        "sequences": float(sum(b.input_ids.shape[0] for b in micro_batches)),
        "positions": float(sum(b.input_ids.numel() for b in micro_batches)),
        "padding": float(sum(b.padding for b in micro_batches)),
        "truncated": float(sum(b.truncated for b in micro_batches)),
        "dropped": float(sum(b.dropped for b in micro_batches)),
    }
    if details and micro_batches[0].token_classes is not None:
        counts.update(named_sums("tokens", [class_counts(batch) for batch in micro_batches]))
    return counts


def _loss_sums(losses: Sequence[LossSums]) -> dict[str, float | Tensor]:
    sums: dict[str, float | Tensor] = {"loss": torch.stack([part.total for part in losses]).double().sum()}
    by_class = [part.by_class for part in losses if part.by_class is not None]
    return {**sums, **named_sums("loss", by_class)} if by_class else sums


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63

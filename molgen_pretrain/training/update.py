"""The gradient of one global batch, the same however ranks and micro-batches split it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.metrics.reduce import Readout, max_over_ranks, reduce_max, send_to_device, sum_over_ranks
from molgen_pretrain.model.loss import LossSums
from molgen_pretrain.optim.optimizer import clip_grad_norm
from molgen_pretrain.parallel.activity import Activity
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.parallel.parallelize import gradient_sync
from molgen_pretrain.signals import StopRequest
from molgen_pretrain.training.class_loss import class_row, named_classes


@dataclass(frozen=True)
class StepResult:
    """One global batch, over all ranks. `max_loss` and `class_losses` only where details were asked for."""

    loss: float
    grad_norm: float
    tokens: int
    sequences: int
    positions: int  # tokens and padding
    attention_pairs: int  # of a place and one that it attends to
    padding: int
    truncated: int
    dropped: int
    stop_signal: int  # the highest that any rank was sent; 0: none
    max_loss: float | None
    class_losses: dict[str, float]
    micro_losses: list[float]  # mean of each micro-batch of this rank


@dataclass(frozen=True)
class StepInFlight:
    """A global batch that the device may still be working on."""

    step: int
    micro_batches: Sequence[Batch]
    has_details: bool
    loss_sum: Tensor  # over all ranks; a scalar, as is the norm
    grad_norm: Tensor
    counts: dict[str, float]  # over all ranks, unless `readout` has those
    signal: int  # that this rank was sent
    readout: Readout


class GradientComputer:
    """Forward and backward passes of a model; leaves the clipped gradient for the optimizer.

    `launch` hands a step to the device, `resolve` waits for what the device has to say of it: in between, the host
    may launch another one.
    """

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

    def launch(self, step: int, micro_batches: Sequence[Batch], *, stop: StopRequest, details: bool) -> StepInFlight:
        """Have the gradient of update number `step` computed. Collective; does not wait for a GPU.

        `details`: also the highest loss of a micro-batch, and the losses by token class where batches have classes.
        """
        # Whatever randomness a model may come to have depends on the step alone: resuming needs no stored state.
        _seed(_step_seed(self._seed, step, self._layout.data_parallel_rank), self._layout.device)
        counts = _counts(micro_batches, details)
        vectors: dict[str, Tensor] = {}
        tokens: float | Tensor = counts["tokens"]
        if self._layout.data_parallel_size > 1:
            # Before the forward, since the gradient of every micro-batch is weighted by the tokens of all.
            mine = send_to_device(list(counts.values()), self._layout.device)
            vectors["counts"] = sum_over_ranks(mine * self._weight)
            tokens = vectors["counts"][list(counts).index("tokens")]
        parts = [self._backward(step, batch, tokens, is_last=batch is micro_batches[-1]) for batch in micro_batches]
        self._activity.enter(step, "gradient norm")
        with record_function("clip"):
            grad_norm = clip_grad_norm(self._parameters, self._max_norm)
        signal = stop.signal  # as late as possible: a step may take a minute
        vectors |= {"grad_norm": grad_norm, **self._losses(parts, micro_batches, signal, details)}
        return StepInFlight(
            step=step,
            micro_batches=micro_batches,
            has_details=details,
            loss_sum=vectors["sums"][0],
            grad_norm=grad_norm,
            counts=counts,
            signal=signal,
            readout=Readout(vectors),
        )

    def resolve(self, flight: StepInFlight) -> StepResult:
        """What all ranks together know of a step, as soon as the device has come that far. Collective."""
        self._activity.enter(flight.step, "results")
        with record_function("results"):
            numbers = flight.readout.wait()
        counts = dict(zip(flight.counts, numbers.get("counts", flight.counts.values()), strict=True))
        loss, *by_class, signals = numbers["sums"]
        totals = zip(numbers["totals"], flight.micro_batches, strict=True)
        return StepResult(
            loss=loss / counts["tokens"],
            grad_norm=numbers["grad_norm"][0],
            tokens=int(counts["tokens"]),
            sequences=int(counts["sequences"]),
            positions=int(counts["positions"]),
            attention_pairs=int(counts["attention_pairs"]),
            padding=int(counts["padding"]),
            truncated=int(counts["truncated"]),
            dropped=int(counts["dropped"]),
            stop_signal=self.agree_on_signal(flight.signal) if signals else 0,
            max_loss=numbers["max_loss"][0] if flight.has_details else None,
            class_losses=class_row(counts, named_classes("loss", by_class)) if by_class else {},
            micro_losses=[total / max(batch.trained, 1) for total, batch in totals],
        )

    def agree_on_signal(self, signal: int) -> int:
        """The highest number of a signal that any rank was sent; 0 if none was. Collective."""
        return int(reduce_max({"signal": float(signal)}, device=self._layout.device)["signal"])

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def _weight(self) -> float:
        """Of this rank in sums over all: zeros from those that see another one's batches, rather than a smaller
        group, so that one collective serves counts and signals, and a NaN stays one."""
        return 1.0 if self._layout.counts_data else 0.0

    def _backward(self, step: int, batch: Batch, tokens: float | Tensor, *, is_last: bool) -> LossSums:
        """Accumulate the gradient of one micro-batch; return its sums, detached."""
        with gradient_sync(self.model, is_last=is_last):
            self._activity.enter(step, "forward")
            with self._autocast(), record_function("forward"):
                sums = self.model(*batch.model_inputs)
            self._activity.enter(step, "backward")
            # Summed gradients are divided by the ranks; multiplying by them leaves sum / tokens.
            scale = self._layout.data_parallel_size / tokens
            with record_function("backward"):
                (sums.total * (scale.float() if isinstance(scale, Tensor) else scale)).backward()
        return LossSums(sums.total.detach(), sums.by_class)

    def _losses(
        self, parts: Sequence[LossSums], micro_batches: Sequence[Batch], signal: int, details: bool
    ) -> dict[str, Tensor]:
        """totals: of this rank's micro-batches. sums: over all, of the loss (in total, then by class) and of ranks
        that were sent a signal. max_loss: the highest mean of a micro-batch of any rank."""
        totals = torch.stack([part.total for part in parts])
        sums = totals.double().sum().reshape(1)
        if details and parts[0].by_class is not None:
            by_class = torch.stack([part.by_class for part in parts if part.by_class is not None])
            sums = torch.cat([sums, by_class.double().sum(dim=0)])
        signals = sums.new_full((1,), float(signal > 0))
        vectors = {"totals": totals, "sums": sum_over_ranks(torch.cat([sums * self._weight, signals]))}
        if details:
            # One bad batch shows here before it does in the loss.
            means = [part.total / max(batch.trained, 1) for part, batch in zip(parts, micro_batches, strict=True)]
            vectors["max_loss"] = max_over_ranks(torch.stack(means).max().double())
        return vectors


def _counts(micro_batches: Sequence[Batch], details: bool) -> dict[str, float]:
    """What this rank's part of a global batch holds."""
    counts = {
        "tokens": sum(batch.trained for batch in micro_batches),
        "sequences": sum(batch.input_ids.shape[0] for batch in micro_batches),
        "positions": sum(batch.input_ids.numel() for batch in micro_batches),
        "attention_pairs": sum(batch.attention_pairs for batch in micro_batches),
        "padding": sum(batch.padding for batch in micro_batches),
        "truncated": sum(batch.truncated for batch in micro_batches),
        "dropped": sum(batch.dropped for batch in micro_batches),
    }
    classes = [batch.class_tokens for batch in micro_batches if batch.class_tokens is not None]
    if details and classes:
        counts.update(named_classes("tokens", np.sum(classes, axis=0).tolist()))
    return {name: float(count) for name, count in counts.items()}


def _seed(seed: int, device: torch.device) -> None:
    """Of the generators that a step may draw from; torch.manual_seed takes 0.3 ms for those of absent devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63

"""Loss over a validation split, the same on any number of ranks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.metrics.reduce import reduce_sums
from molgen_pretrain.model.loss import IGNORE_INDEX


class Validator:
    """Evaluates a model on a finite, unshuffled split in which every rank has as many batches.

    `max_batches` bounds the batches per rank; None takes the whole split.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        device: torch.device,
        vocab_size: int,
        max_batches: int | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._batches = batches
        self._device = device
        self._vocab_size = vocab_size
        self._max_batches = max_batches
        self._autocast = autocast
        self.unigram_entropy: float | None = None

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """loss (nats per token over the split), perplexity, tokens, seconds; also the split's unigram entropy.

        Collective: every rank calls it at the same step.
        """
        began = time.perf_counter()
        model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        tokens = torch.zeros((), dtype=torch.int64, device=self._device)
        counts = torch.zeros(self._vocab_size, dtype=torch.int64, device=self._device)
        for batch in itertools.islice(self._batches, self._max_batches):
            batch = batch.to(self._device, non_blocking=True)
            with self._autocast():
                loss_sum += model(batch.input_ids, batch.labels).double()
            targets = batch.labels[batch.labels != IGNORE_INDEX]
            tokens += targets.numel()
            if self.unigram_entropy is None:
                counts += torch.bincount(targets, minlength=self._vocab_size)
        model.train()
        if self.unigram_entropy is None:
            self.unigram_entropy = _entropy(counts)
        sums = reduce_sums({"loss": loss_sum, "tokens": tokens}, device=self._device)
        loss = sums["loss"] / sums["tokens"]
        return {
            "loss": loss,
            "perplexity": float(torch.tensor(loss, dtype=torch.float64).exp()),
            "tokens": int(sums["tokens"]),
            "unigram_entropy": self.unigram_entropy,
            "seconds": time.perf_counter() - began,
        }


def _entropy(counts: Tensor) -> float:
    """Entropy in nats of the token frequencies of all ranks: the loss of the best model without context."""
    if dist.is_initialized():
        dist.all_reduce(counts)
    share = counts[counts > 0].double()
    share = share / share.sum()
    return float(-(share * share.log()).sum())

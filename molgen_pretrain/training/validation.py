"""Loss over a validation split, the same on any number of ranks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.metrics.reduce import reduce_sums
from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.parallel.layout import Layout
from molgen_pretrain.training.class_loss import class_row, named_classes


class Validator:
    """Evaluates a model on a finite, unshuffled split in which every rank has as many batches.

    `max_batches` bounds the batches per rank; None takes the whole split. `stop_agreed` is collective and asked
    after each batch.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        layout: Layout,
        vocab_size: int,
        max_batches: int | None,
        autocast: Callable[[], AbstractContextManager[object]],
        stop_agreed: Callable[[], bool],
    ) -> None:
        self._batches = batches
        self._device = layout.device
        self._vocab_size = vocab_size
        self._max_batches = max_batches
        self._weight = 1 if layout.counts_data else 0  # tensor-parallel ranks see the same batches
        self._autocast = autocast
        self._stop_agreed = stop_agreed
        self.unigram_entropy: float | None = None

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float] | None:
        """loss (nats per token over the split), perplexity, tokens, seconds; also the split's unigram entropy, and
        the losses by token class where batches have classes. None where a stop was agreed on before the end.

        Collective: every rank calls it at the same step.
        """
        began = time.perf_counter()
        model.eval()
        try:
            sums = self._sum_up(model)
        finally:
            model.train()
        if sums is None:
            return None
        totals = reduce_sums({name: value * self._weight for name, value in sums.items()}, device=self._device)
        loss = totals["loss"] / totals["tokens"]
        assert self.unigram_entropy is not None  # of the first time through
        return {
            "loss": loss,
            "perplexity": float(torch.tensor(loss, dtype=torch.float64).exp()),
            "tokens": int(totals["tokens"]),
            "unigram_entropy": self.unigram_entropy,
            **(class_row(totals, totals) if len(totals) > 2 else {}),
            "seconds": time.perf_counter() - began,
        }

    def _sum_up(self, model: nn.Module) -> dict[str, Any] | None:
        """This rank's sums by name, numbers and float64 scalars; None where a stop was agreed on."""
        sums: dict[str, Any] = {}
        token_counts = torch.zeros(self._vocab_size, dtype=torch.int64, device=self._device)
        for batch in itertools.islice(self._batches, self._max_batches):
            batch = batch.to(self._device, non_blocking=True)
            for name, value in self._batch_sums(model, batch).items():
                sums[name] = sums.get(name, 0) + value
            if self.unigram_entropy is None:
                targets = batch.labels[batch.labels != IGNORE_INDEX]
                token_counts += torch.bincount(targets, minlength=self._vocab_size)
            if self._stop_agreed():
                return None
        if self.unigram_entropy is None:
            self.unigram_entropy = _entropy(token_counts * self._weight)
        return sums

    def _batch_sums(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        with self._autocast():
            losses = model(*batch.model_inputs)
        sums = {"loss": losses.total.double(), "tokens": batch.trained}
        if losses.by_class is not None and batch.class_tokens is not None:
            sums |= named_classes("loss", losses.by_class.double()) | named_classes("tokens", batch.class_tokens)
        return sums


def _entropy(counts: Tensor) -> float:
    """Entropy in nats of the token frequencies of all ranks: the loss of the best model without context."""
    if dist.is_initialized():
        dist.all_reduce(counts)
    share = counts[counts > 0].double()
    share = share / share.sum()
    return float(-(share * share.log()).sum())

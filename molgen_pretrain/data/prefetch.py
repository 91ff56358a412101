"""Micro-batches on their way to the device, while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain

import torch

from molgen_pretrain.data.batch import Batch


class DevicePrefetcher:
    """Hands out micro-batches on a device, in order.

    On a GPU the copies run on a stream of their own, beside what the device computes; without pinned memory they
    hold up the host all the same. On a CPU batches pass through.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._source: Iterator[Batch] = chain(batches)  # which begins, and starts workers, with the first batch
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: deque[Batch] = deque()

    def fetch(self, count: int) -> None:
        """See to it that `count` micro-batches, or all that are left, are on their way to the device."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            while len(self._ready) < count and (batch := next(self._source, None)) is not None:
                self._ready.append(batch.to(self._device, non_blocking=True))

    def take(self, count: int) -> list[Batch]:
        """The next `count` micro-batches, for the current stream; none where fewer are left."""
        self.fetch(count)
        if len(self._ready) < count:
            return []
        taken = [self._ready.popleft() for _ in range(count)]
        if self._stream is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._stream)
            for batch in taken:
                batch.record_stream(computing)
        return taken

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Hand these out again, before all others."""
        self._ready.extendleft(reversed(batches))

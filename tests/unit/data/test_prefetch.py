"""Batches on their way to the device come in order, each once, and no earlier than they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.prefetch import DevicePrefetcher
from molgen_pretrain.data.tokenizer import UnitTokenizer


@pytest.fixture
def batches(write_corpus: Callable[..., Path], tokenizer: UnitTokenizer, tmp_path: Path) -> list[Batch]:
    dataset = JsonlTaggedPackedDataset(
        paths=write_corpus(200), tokenizer=tokenizer, seq_len=96, local_batch_size=1, min_emb_len=8, cache_dir=tmp_path
    )
    return list(islice(dataset, 7))


def places(batches: list[Batch]) -> list[int]:
    return [batch.position.sequences for batch in batches]


def test_order_and_end(batches: list[Batch]) -> None:
    given: list[int] = []

    def source() -> Iterator[Batch]:
        for batch in batches:
            given.append(batch.position.sequences)
            yield batch

    prefetcher = DevicePrefetcher(source(), torch.device("meta"))
    assert given == []
    first = prefetcher.take(2)
    assert places(first) == given == [1, 2]
    assert first[0].input_ids.device.type == "meta"
    prefetcher.fetch(2)
    assert given == [1, 2, 3, 4]
    second = prefetcher.take(2)
    prefetcher.fetch(2)
    prefetcher.put_back(second)
    prefetcher.put_back(first)
    assert [places(prefetcher.take(2)) for _ in range(4)] == [[1, 2], [3, 4], [5, 6], []]
    assert prefetcher.take(2) == [], "less than asked for is left"

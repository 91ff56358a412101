"""Real conformers with the real tokenizer; skipped where the folder beside the checkout is absent."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.tokenizer import UnitTokenizer

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared"

pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def real_tokenizer() -> UnitTokenizer:
    return UnitTokenizer.load(SHARED / "tokenizers" / "qwen3_custom")


@pytest.mark.parametrize("seq_len", [2048, 4096])
def test_packing_of_real_lengths(
    real_tokenizer: UnitTokenizer, tmp_path_factory: pytest.TempPathFactory, seq_len: int
) -> None:
    dataset = JsonlTaggedPackedDataset(
        paths=SHARED / "data" / "conformers" / "valid",
        tokenizer=real_tokenizer,
        seq_len=seq_len,
        local_batch_size=1,
        cache_dir=tmp_path_factory.getbasetemp() / "shared-cache",
    )
    summary = dataset.summary()
    assert (summary.lines, summary.units, summary.bad_lines) == (1439, 1439, {})
    fewest = -(-summary.tokens // seq_len)
    assert dataset.sequences_in_epoch() <= fewest + 1
    batch = next(iter(dataset))
    text = real_tokenizer.decode(batch.input_ids[0].tolist())
    assert text.startswith("[SMILES]")
    assert text.count("[/CONFORMER]<|endoftext|>") == len(batch.unit_ids[0])


def test_ids_are_those_of_transformers(real_tokenizer: UnitTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    folder = SHARED / "tokenizers" / "qwen3_custom"
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert (real_tokenizer.pad_id, real_tokenizer.size) == (reference.pad_token_id, len(reference))
    with (SHARED / "data" / "conformers" / "valid" / "valid_data_0.jsonl").open() as file:
        texts = [f"[SMILES]{line}[/CONFORMER]" for line in islice(file, 20)]
    assert real_tokenizer.encode_batch(texts) == reference(texts, add_special_tokens=False)["input_ids"]


BATCH = 24  # sequences per global batch: divides among 1, 2, 3, 4 and 8 ranks
BATCHES = 340  # of 4,096 tokens: more than two epochs


class Conformers:
    """All training conformers, read by any number of ranks and workers."""

    def __init__(self, tokenizer: UnitTokenizer, cache: Path) -> None:
        self.tokenizer = tokenizer
        self.cache = cache

    def dataset(self, world: int, rank: int = 0, cache: str = "tokens") -> JsonlTaggedPackedDataset:
        return JsonlTaggedPackedDataset(
            paths=SHARED / "data" / "conformers" / "train",
            tokenizer=self.tokenizer,
            seq_len=4096,
            local_batch_size=BATCH // world,
            world_size=world,
            rank=rank,
            seed=3,
            cache_dir=self.cache,
            cache=cache,
        )

    def batches(
        self, world: int, workers: int, count: int, cache: str = "tokens", position: dict | None = None
    ) -> list[list[Batch]]:
        """The first batches of each rank, from its loader."""
        ranks = []
        for rank in range(world):
            dataset = self.dataset(world, rank, cache)
            if position:
                dataset.start_at(position)
            ranks.append(list(islice(build_loader(dataset, num_workers=workers), count)))
        return ranks

    def planned_units(self, world: int, rank: int, workers: int) -> Iterator[list[np.ndarray]]:
        """The units of a rank's batches, group by group from each worker in turn, as a DataLoader asks them."""
        dataset = self.dataset(world, rank)
        at_once = dataset.micro_batches_at_once
        for group in roundrobin([dataset.packed(at_once, worker, workers) for worker in range(workers)]):
            for batch in group.split():
                yield batch.sequences.unit_ids()


def roundrobin(streams: list[Iterator]) -> Iterator:
    return (item for together in zip(*streams, strict=True) for item in together)


def digests(ranks: Iterable[Iterable[list[np.ndarray]]]) -> list[str]:
    """SHA-256 of the unit ids of each global batch, from those of the ranks' batches."""
    hashed = []
    for together in zip(*ranks, strict=True):
        units = [units.tolist() for batch in together for units in batch]
        hashed.append(hashlib.sha256(json.dumps(units).encode()).hexdigest())
    return hashed


def loaded(ranks: list[list[Batch]]) -> list[list[list[np.ndarray]]]:
    return [[batch.unit_ids for batch in batches] for batches in ranks]


@pytest.fixture(scope="module")
def conformers(real_tokenizer: UnitTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Conformers:
    return Conformers(real_tokenizer, tmp_path_factory.mktemp("conformers"))


@pytest.fixture(scope="module")
def order(conformers: Conformers) -> list[str]:
    """The digests of the run that the others are compared with: one rank, no worker, never stopped."""
    ranks = conformers.batches(1, 0, BATCHES)
    assert ranks[0][-1].epoch > 2
    return digests(loaded(ranks))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_same_global_batches_on_any_ranks_and_workers(
    conformers: Conformers, order: list[str], world: int, workers: int
) -> None:
    """Over two epochs, planned by every worker of every rank."""
    ranks = [islice(conformers.planned_units(world, rank, workers), BATCHES) for rank in range(world)]
    assert digests(ranks) == order


@pytest.mark.parametrize(("world", "workers"), [(1, 4), (3, 1), (8, 0)])
def test_same_global_batches_through_the_loader(
    conformers: Conformers, order: list[str], world: int, workers: int
) -> None:
    """Over two epochs, with worker processes."""
    assert digests(loaded(conformers.batches(world, workers, BATCHES))) == order


def test_same_global_batches_across_restarts_splits_and_modes(conformers: Conformers, order: list[str]) -> None:
    """Three kills at random points, another split and mode after each; two epochs in all."""
    rng = random.Random()
    stops = sorted(rng.sample(range(4, BATCHES - 4), 3))
    position, found = None, []
    for start, stop in zip([0, *stops], [*stops, BATCHES], strict=True):
        world, workers = rng.choice([1, 2, 3]), rng.choice([0, 1, 4])
        cached = conformers.batches(world, workers, stop - start, "tokens", position)
        # Tokenizing all of it would take long: of each stretch the beginning.
        tokenized = conformers.batches(world, min(workers, 1), 2, "lengths", position)
        assert digests(loaded(tokenized)) == digests(loaded(cached))[:2]
        for ours, theirs in zip(tokenized, cached, strict=True):
            for one, other in zip(ours, theirs, strict=False):
                assert torch.equal(one.input_ids, other.input_ids)
                assert torch.equal(one.labels, other.labels)
        found += digests(loaded(cached))
        # What a checkpoint keeps, after more batches were made ready than were used.
        position = json.loads(json.dumps(cached[0][-1].position.state_dict()))
    assert found == order, (stops, world, workers)

"""Which sequences meet in a global batch: on any number of ranks and workers, after any restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.cursor import SequenceCursor
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.plan import EpochPlanner, OrderSettings
from molgen_pretrain.data.position import Position, SourcePosition
from molgen_pretrain.data.sequences import Sequences
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

Make = Callable[..., JsonlTaggedPackedDataset]
Rows = list[tuple[int, ...]]


@pytest.fixture
def make(write_corpus: Callable[..., Path], tokenizer: UnitTokenizer, tmp_path: Path) -> Make:
    """`make(lines, **options)`: a dataset over a corpus of so many lines (written once per test)."""
    corpora: dict[int, Path] = {}

    def make_(lines: int, **options: object) -> JsonlTaggedPackedDataset:
        if lines not in corpora:
            corpora[lines] = write_corpus(lines, files=3, replaced={7: b"{", 11: b""})
        defaults = {"seq_len": 128, "local_batch_size": 2, "min_emb_len": 8, "seed": 5}
        return JsonlTaggedPackedDataset(
            **{**defaults, **options}, paths=corpora[lines], tokenizer=tokenizer, cache_dir=tmp_path / "cache"
        )

    return make_


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molgen_pretrain.data.plan.BLOCK_LINES", 256)


def ids(batch: Batch) -> Rows:
    return [tuple(sequence.tolist()) for sequence in batch.unit_ids]


def stream(dataset: JsonlTaggedPackedDataset) -> Iterator[Rows]:
    return map(ids, dataset)


def global_batches(make_rank: Callable[[int], JsonlTaggedPackedDataset], world: int, accumulation: int,
                   count: int, workers: int) -> list[Rows]:  # fmt: skip
    """The first batches as all ranks together see them: micro-batch by micro-batch, rank by rank."""
    ranks = []
    for rank in range(world):
        loader = build_loader(make_rank(rank), num_workers=workers, prefetch_factor=2)
        ranks.append([ids(batch) for batch in islice(loader, count * accumulation)])
    return [
        [
            sequence
            for micro in range(step * accumulation, (step + 1) * accumulation)
            for rank in range(world)
            for sequence in ranks[rank][micro]
        ]
        for step in range(count)
    ]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(("world", "local", "accumulation"), [(1, 12, 1), (2, 3, 2), (3, 2, 2), (4, 3, 1)])
def test_same_global_batches_for_any_split(make: Make, world: int, local: int, accumulation: int, workers: int) -> None:
    count = 42  # more than two epochs of 700 lines, three blocks each
    one_by_one = make(700, local_batch_size=1)
    sequences = [batch[0] for batch in islice(stream(one_by_one), 12 * count)]
    expected = [sequences[step * 12 : (step + 1) * 12] for step in range(count)]

    def make_rank(rank: int) -> JsonlTaggedPackedDataset:
        return make(700, local_batch_size=local, accumulation_steps=accumulation, rank=rank, world_size=world)

    assert one_by_one.sequences_in_epoch() * 2 < 12 * count
    assert global_batches(make_rank, world, accumulation, count, workers) == expected


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("lines", [1, 2, 12, 256, 700])
def test_every_unit_once_per_epoch(make: Make, lines: int, world: int) -> None:
    ranks = [make(lines, local_batch_size=1, rank=rank, world_size=world) for rank in range(world)]
    sequences = (
        sequence for batches in zip(*map(stream, ranks), strict=True) for batch in batches for sequence in batch
    )
    for epoch in range(3):
        count = ranks[0].sequences_in_epoch(epoch)
        seen = [line for sequence in islice(sequences, count) for line in sequence]
        assert sorted(seen) == [line for line in range(lines) if line not in (7, 11)]


class Lengths:
    """A line index of token counts alone."""

    def __init__(self, counts: np.ndarray) -> None:
        self.lines = len(counts)
        self.token_counts = counts.__getitem__


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=400).filter(any),
    st.integers(1, 9),
    st.integers(1, 70),
    st.booleans(),
)
def test_every_unit_once_per_epoch_for_any_lengths(counts: list[int], step: int, block: int, shuffles: bool) -> None:
    """Bad lines (no tokens) and dropped units left out, whatever is taken at a time."""
    expected = [line for line, count in enumerate(counts) if 0 < count <= 31]
    dropped = sum(count > 31 for count in counts)
    assume(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("molgen_pretrain.data.plan.BLOCK_LINES", block)
        planner = EpochPlanner(Lengths(np.array(counts)), OrderSettings(3, 32, shuffles, 20, drop_overflow=True))
        cursor = SequenceCursor(planner, SourcePosition(), infinite=False)
        taken = Sequences.joined(takewhile(len, iter(lambda: cursor.take(step), None)))
    assert sorted(taken.units.tolist()) == expected
    assert np.add.reduceat(taken.counts + 1, taken.bounds[:-1]).max() <= 32
    assert cursor.dropped == dropped


def test_every_one_of_a_million_units_once_per_epoch() -> None:
    counts = np.random.default_rng(0).integers(1, 1500, 1_000_003)
    planner = EpochPlanner(Lengths(counts), OrderSettings(0, 2048, True, 65536, drop_overflow=False))
    for epoch in (0, 7):
        plan = Sequences.joined(planner.plan_block(epoch, block).sequences for block in range(planner.blocks))
        assert np.array_equal(np.sort(plan.units), np.arange(1_000_003))
        assert np.array_equal(plan.counts, counts[plan.units])


def test_epochs_and_seeds_differ_and_shuffling_can_be_off(make: Make) -> None:
    def first_epoch(**options: object) -> Rows:
        dataset = make(700, local_batch_size=1, infinite=False, **options)
        return [batch[0] for batch in stream(dataset)]

    shuffled = first_epoch()
    assert first_epoch(seed=6) != shuffled
    assert first_epoch() == shuffled
    assert [batch[0] for batch in islice(stream(make(700, local_batch_size=1)), 2 * len(shuffled))][
        len(shuffled) :
    ] != shuffled
    plain = first_epoch(shuffle_lines=False)
    assert plain == first_epoch(shuffle_lines=False, seed=6)
    assert [sequence[0] for sequence in plain] == sorted(sequence[0] for sequence in plain)
    assert all(list(sequence) == sorted(sequence) for sequence in plain)


def test_packing_orders_nothing_by_length(make: Make, tokenizer: UnitTokenizer) -> None:
    batches = list(make(6000, local_batch_size=1, infinite=False))
    sequences = [ids(batch)[0] for batch in batches]
    separators = [np.flatnonzero(batch.input_ids[0].numpy() == tokenizer.pad_id) for batch in batches]
    lengths = [np.diff(s, prepend=-1)[: len(q)] for s, q in zip(separators, sequences, strict=True) if len(q) > 2]
    first, last = [np.mean([row[place] for row in lengths]) for place in (0, -1)]
    assert abs(first - last) < 0.05 * np.mean(np.concatenate(lengths))
    half = len(sequences) // 2
    early, late = [np.mean([len(s) for s in part]) for part in (sequences[:half], sequences[half:])]
    assert abs(early - late) < 0.05 * early


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_continues_exactly_past_thousands_of_lines(make: Make, workers: int) -> None:
    lines = 12_000  # 6,000 per worker: more than a shuffle buffer would hide
    options = {"seq_len": 512, "local_batch_size": 4, "accumulation_steps": 2}
    whole = [(ids(b), b.position, b.epoch) for b in islice(make(lines, **options), 560)]
    assert sum(len(s) for batch, _, _ in whole for s in batch) > 2 * lines
    for stop in (2, 90, 198, 342, 496) if workers == 0 else (198,):
        dataset = make(lines, **options)
        dataset.start_at(whole[stop - 1][1].state_dict())
        loader = build_loader(dataset, num_workers=workers)
        resumed = [(ids(b), b.position, b.epoch) for b in islice(loader, 60)]
        assert resumed == whole[stop : stop + 60]


@pytest.mark.usefixtures("small_blocks")
def test_resume_with_another_global_batch_keeps_the_sequence_order(make: Make) -> None:
    sequences = [s for batch in islice(stream(make(700, local_batch_size=1)), 150) for s in batch]
    before = list(islice(make(700, local_batch_size=6), 10))
    dataset = make(700, local_batch_size=4, rank=1, world_size=2)
    dataset.start_at(before[-1].position)
    after = next(stream(dataset))
    assert before[-1].position.sequences == 60
    assert after == sequences[64:68]


@pytest.mark.usefixtures("small_blocks")
def test_positions_are_integers_and_overlong_offsets_carry(make: Make) -> None:
    dataset = make(700, local_batch_size=1)
    batches = list(islice(dataset, 40))
    assert batches[-1].position.state_dict().keys() == {"epoch", "block", "offset", "sequences"}
    assert [batch.position.sequences for batch in batches] == list(range(1, 41))
    dataset.start_at({"epoch": 0, "block": 0, "offset": 39, "sequences": 39})
    carried = next(iter(dataset))
    assert ids(carried) == ids(batches[39])
    assert carried.position == batches[39].position
    for state in ({"epoch": 0}, {"epoch": 0, "block": 0, "offset": -1, "sequences": 0},
                  {"epoch": 0, "block": 0, "offset": 1.0, "sequences": 0}):  # fmt: skip
        with pytest.raises(UserError, match="data position"):
            dataset.start_at(state)


@pytest.mark.usefixtures("small_blocks")
def test_the_fractional_epoch_rises_to_whole_numbers(make: Make) -> None:
    dataset = make(700, local_batch_size=1)
    first, second = dataset.sequences_in_epoch(0), dataset.sequences_in_epoch(1)
    epochs = [batch.epoch for batch in islice(dataset, first + second)]
    assert epochs == sorted(epochs)
    assert epochs[first - 1] == 1.0
    assert epochs[-1] == 2.0
    assert 0.45 < epochs[first // 2] < 0.55


def test_a_finite_dataset_stops_before_a_part_of_a_batch(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    dataset = make(700, local_batch_size=7, infinite=False)
    batches = list(dataset)
    total = dataset.sequences_in_epoch()
    assert dataset.leftover_sequences() == total % 7 != 0
    assert len(batches) == total // 7
    assert f"{total % 7} sequences left over" in caplog.text
    with pytest.raises(UserError, match=f"fewer than one global batch of {total + 1}"):
        list(make(700, local_batch_size=total + 1, infinite=False))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("world", "lines"), [(1, 300), (3, 300), (4, 300), (5, 1)])
def test_validation_sees_every_sequence_once_on_uneven_ranks(make: Make, world: int, lines: int, workers: int) -> None:
    def rank_batches(rank: int) -> list[Batch]:
        dataset = make(lines, rank=rank, world_size=world, infinite=False, shuffle_lines=False, last_batch="pad")
        assert dataset.leftover_sequences() == 0
        return list(build_loader(dataset, num_workers=workers))

    ranks = [rank_batches(rank) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = Counter(s for batches in ranks for batch in batches for s in ids(batch) if s)
    whole = list(make(lines, local_batch_size=1, infinite=False, shuffle_lines=False))
    assert seen == Counter(s for batch in whole for s in ids(batch))
    every = [batch for batches in ranks for batch in batches]
    assert sum((b.labels != -100).sum().item() for b in every) == sum((b.labels != -100).sum().item() for b in whole)
    for batch in every:
        for row, sequence in enumerate(ids(batch)):
            if not sequence:
                assert (batch.labels[row] == -100).all()


@pytest.mark.parametrize("persistent_workers", [True, False])
def test_another_pass_starts_anew_even_after_a_part(make: Make, persistent_workers: bool) -> None:
    dataset = make(300, infinite=False, last_batch="pad")
    expected = list(stream(dataset))
    loader = build_loader(dataset, num_workers=1, persistent_workers=persistent_workers)
    assert [ids(batch) for batch in islice(loader, 3)] == expected[:3]
    assert [ids(batch) for batch in loader] == expected


def test_the_order_fingerprint_follows_the_order(make: Make) -> None:
    base = make(300)
    assert make(300, local_batch_size=3, world_size=2).order_fingerprint == base.order_fingerprint
    for change in ({"seed": 6}, {"seq_len": 129}, {"lookahead_limit": 9}, {"overflow": "drop"}):
        assert make(300, **change).order_fingerprint != base.order_fingerprint
    assert make(301).order_fingerprint != base.order_fingerprint


def test_planning_is_the_same_on_every_platform_and_version(make: Make) -> None:
    """Pinned: if these numbers change, every run that is under way resumes on other data."""
    dataset = make(700, local_batch_size=1)
    dataset.start_at(Position({"": SourcePosition(epoch=3)}))
    first = [ids(batch)[0] for batch in islice(dataset, 3)]
    assert first == [(346, 498, 194), (575, 48, 145), (360, 627, 608)]

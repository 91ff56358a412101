"""What is in a micro-batch, compared with a reading of the files that knows nothing of the package."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from molgen_pretrain.data.batch import Batch
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError


@pytest.fixture
def corpus(write_corpus: Callable[..., Path]) -> Path:
    return write_corpus(400, files=2)


@pytest.fixture
def make(corpus: Path, tokenizer: UnitTokenizer, tmp_path: Path) -> Callable[..., JsonlTaggedPackedDataset]:
    def make_(**options: object) -> JsonlTaggedPackedDataset:
        defaults = {"seq_len": 96, "local_batch_size": 3, "min_emb_len": 8}
        return JsonlTaggedPackedDataset(
            **{**defaults, "paths": corpus, **options}, tokenizer=tokenizer, cache_dir=tmp_path / "cache"
        )

    return make_


def expected_units(corpus: Path, tokenizer: UnitTokenizer) -> list[list[int]]:
    lines = [json.loads(line) for file in sorted(corpus.iterdir()) for line in file.read_text().splitlines()]
    texts = [
        "[SMILES]" + r["canonical_smiles"] + "[/SMILES][CONFORMER]" + r["embedded_smiles"] + "[/CONFORMER]"
        for r in lines
    ]
    return tokenizer.encode_batch(texts)


@pytest.mark.parametrize("workers", [None, 0, 1])
@pytest.mark.parametrize("cache", ["lengths", "tokens"])
@pytest.mark.parametrize("seq_len", [2, 30, 96])
def test_inputs_and_labels_against_a_naive_reading(
    corpus: Path,
    tokenizer: UnitTokenizer,
    make: Callable[..., JsonlTaggedPackedDataset],
    seq_len: int,
    cache: str,
    workers: int | None,
) -> None:
    units = expected_units(corpus, tokenizer)
    pad = tokenizer.pad_id
    dataset = make(seq_len=seq_len, cache=cache)
    for batch in islice(dataset if workers is None else build_loader(dataset, num_workers=workers), 20):
        assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
        assert batch.input_ids.shape == batch.labels.shape == (3, seq_len)
        assert batch.position_ids is None
        assert batch.token_classes is None
        real = truncated = 0
        for row, lines in enumerate(batch.unit_ids):
            tokens = []
            for line in lines:
                tokens += [*units[line][: seq_len - 1], pad]
                truncated += len(units[line]) > seq_len - 1
            real += len(tokens)
            assert batch.input_ids[row].tolist() == tokens + [pad] * (seq_len - len(tokens))
            labels = [tokens[t + 1] if t + 1 < len(tokens) else -100 for t in range(seq_len)]
            assert batch.labels[row].tolist() == labels
        assert (batch.tokens, batch.padding, batch.truncated) == (real, 3 * seq_len - real, truncated)
        assert batch.trained == (batch.labels != -100).sum()
        assert batch.attention_pairs == 3 * torch.ones(seq_len, seq_len).tril().sum()


def test_tags_predict_the_separator_and_separators_predict_the_next_unit(
    tokenizer: UnitTokenizer, make: Callable[..., JsonlTaggedPackedDataset]
) -> None:
    batch = next(iter(make()))
    row, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    [open_tag], [close_tag] = tokenizer.encode_batch(["[SMILES]", "[/CONFORMER]"])
    assert len(batch.unit_ids[0]) > 1
    first_end = row.index(close_tag)
    assert labels[first_end] == tokenizer.pad_id
    assert labels[first_end + 1] == open_tag


@pytest.mark.parametrize("seq_len", [2, 30, 96])
def test_with_a_document_mask_each_unit_is_as_if_alone(
    corpus: Path, tokenizer: UnitTokenizer, make: Callable[..., JsonlTaggedPackedDataset], seq_len: int
) -> None:
    units = expected_units(corpus, tokenizer)
    plain, masked = make(seq_len=seq_len), make(seq_len=seq_len, document_mask=True)
    for expected, batch in zip(islice(plain, 30), masked, strict=False):
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert batch.position_ids is not None
        assert batch.position_ids.dtype == torch.int64
        for row, lines in enumerate(batch.unit_ids):
            positions, labels = [], []
            for line in lines:
                kept = units[line][: seq_len - 1]
                positions += range(len(kept) + 1)
                labels += [*kept[1:], tokenizer.pad_id, -100]
            padding = seq_len - len(positions)
            assert batch.position_ids[row].tolist() == [*positions, *range(padding)]
            assert batch.labels[row].tolist() == labels + [-100] * padding
        assert batch.trained == (batch.labels != -100).sum()


@pytest.mark.parametrize("rows", [3, 7])
def test_borders_and_pairs_say_what_attends_to_what(make: Callable[..., JsonlTaggedPackedDataset], rows: int) -> None:
    """Fillers of the last batch included."""
    dataset = make(document_mask=True, infinite=False, last_batch="pad", local_batch_size=rows)
    for batch in dataset:
        assert batch.position_ids is not None
        assert batch.unit_borders is not None
        assert batch.unit_borders.dtype == torch.int32
        assert len(batch.unit_borders) == 64
        begins = (batch.position_ids.flatten() == 0).nonzero().flatten().tolist()
        borders = batch.unit_borders.tolist()
        assert borders == begins + [rows * 96] * (len(borders) - len(begins))
        assert borders[-1] == rows * 96
        # A place attends to as many places as stand between its unit's first and itself.
        assert batch.attention_pairs == (batch.position_ids + 1).sum()


def test_a_filler_sequence_is_one_document_of_padding(make: Callable[..., JsonlTaggedPackedDataset]) -> None:
    dataset = make(document_mask=True, infinite=False, last_batch="pad", local_batch_size=7)
    last = list(dataset)[-1]
    fillers = [row for row, units in enumerate(last.unit_ids) if not len(units)]
    assert fillers
    assert last.position_ids is not None
    for row in fillers:
        assert last.position_ids[row].tolist() == list(range(96))
        assert (last.labels[row] == -100).all()


def test_overflow_is_truncated_or_dropped_and_counted(make: Callable[..., JsonlTaggedPackedDataset]) -> None:
    kept, dropped = make(seq_len=40), make(seq_len=40, overflow="drop")
    long = kept.summary().truncated_units
    assert 0 < long < 400
    assert (kept.summary().units, kept.summary().dropped_units) == (400, 0)
    assert (dropped.summary().units, dropped.summary().dropped_units) == (400 - long, long)

    def epoch(dataset: JsonlTaggedPackedDataset) -> list[Batch]:
        return list(islice(dataset, dataset.sequences_in_epoch() // 3))

    assert sum(batch.truncated for batch in epoch(make(seq_len=40, local_batch_size=3))) <= long
    assert sum(batch.truncated for batch in epoch(dropped)) == 0


@pytest.mark.parametrize("overflow", ["truncate", "drop"])
def test_the_summary_counts_the_tokens_of_an_epoch(
    make: Callable[..., JsonlTaggedPackedDataset], overflow: str
) -> None:
    dataset = make(seq_len=40, local_batch_size=1, infinite=False, overflow=overflow)
    batches = list(dataset)
    summary = dataset.summary()
    assert sum(batch.tokens for batch in batches) == summary.tokens
    assert sum(len(batch.unit_ids[0]) for batch in batches) == summary.units
    assert sum(batch.truncated for batch in batches) == summary.truncated_units
    assert sum(batch.dropped for batch in batches) == summary.dropped_units


def test_dropped_units_are_counted_once_over_ranks_and_restarts(
    make: Callable[..., JsonlTaggedPackedDataset],
) -> None:
    options = {"seq_len": 40, "overflow": "drop", "world_size": 2, "accumulation_steps": 2}
    first, second = make(**options, rank=0), make(**options, rank=1)
    epochs = 3
    count = epochs * first.sequences_in_epoch() // (3 * 2)
    batches = list(islice(first, count))
    assert sum(batch.dropped for batch in islice(second, count)) == 0
    assert {batch.dropped for batch in batches[1::2]} == {0}
    stop = count // 2 - count // 2 % 2
    first.start_at(batches[stop - 1].position)
    resumed = list(islice(first, count - stop))
    assert [batch.dropped for batch in resumed] == [batch.dropped for batch in batches[stop:]]
    dropped = sum(batch.dropped for batch in batches)
    assert abs(dropped - epochs * first.summary().dropped_units) <= 0.05 * dropped


def test_the_summary_reads_as_a_log_line(
    write_corpus: Callable[..., Path], make: Callable[..., JsonlTaggedPackedDataset]
) -> None:
    folder = write_corpus(50, files=1, replaced={4: b"{", 9: b"[]", 10: b"}"})
    summary = make(paths=folder, seq_len=40).summary()
    assert summary.describe().startswith("1 file (0.0 MB), 50 lines, 47 units, 0.0 M tokens per epoch")
    assert summary.describe_bad_lines() == (
        f"3 of 50 lines are bad and skipped: 2 invalid_json, 1 not_an_object; first: {folder}/part-0.jsonl:5"
        f" invalid_json, {folder}/part-0.jsonl:10 not_an_object, {folder}/part-0.jsonl:11 invalid_json"
    )
    assert make().summary().describe_bad_lines() is None


def test_units_are_located_by_file_and_line(corpus: Path, make: Callable[..., JsonlTaggedPackedDataset]) -> None:
    dataset = make()
    lines = [line for file in sorted(corpus.iterdir()) for line in file.read_text().splitlines()]
    batch = next(iter(dataset))
    for line, place in zip(batch.unit_ids[0], dataset.locate(batch.unit_ids[0]), strict=True):
        path, number = place.rsplit(":", 1)
        assert Path(path).read_text().splitlines()[int(number) - 1] == lines[line]


def test_a_line_that_changes_in_place_is_named(corpus: Path, make: Callable[..., JsonlTaggedPackedDataset]) -> None:
    dataset = make(local_batch_size=400)
    file = corpus / "part-1.jsonl"
    content = file.read_bytes()
    first = content.index(b"\n")
    file.write_bytes(b"#" * first + content[first:])
    with pytest.raises(UserError, match=r"part-1\.jsonl:1: the file changed after it was indexed"):
        next(iter(dataset))


def test_batches_move_and_travel(make: Callable[..., JsonlTaggedPackedDataset]) -> None:
    batch = next(iter(make()))
    moved = next(iter(make(document_mask=True, token_classes=True))).to("meta")
    tensors = (moved.input_ids, moved.labels, moved.position_ids, moved.token_classes, moved.unit_borders)
    assert [tensor.device.type for tensor in tensors if tensor is not None] == ["meta"] * 5
    assert moved.position == batch.position
    copy = pickle.loads(pickle.dumps(batch))  # noqa: S301
    assert torch.equal(copy.labels, batch.labels)


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("overflow", "split", "data.overflow=split: must be one of truncate, drop"),
        ("on_bad_line", "ignore", "data.on_bad_line=ignore"),
        ("last_batch", "keep", "last_batch=keep"),
        ("seq_len", 1, "data.seq_len=1: must be at least 2"),
        ("lookahead_limit", 0, "data.lookahead_limit=0"),
        ("local_batch_size", 0, "training.local_batch_size=0"),
        ("rank", 1, "rank=1: must lie in"),
        ("min_emb_len", 1000, "400 short_conformer"),
        ("cache", "disk", "data.cache=disk: must be one of"),
    ],
)
def test_arguments_that_cannot_work_are_refused(
    make: Callable[..., JsonlTaggedPackedDataset], option: str, value: object, rule: str
) -> None:
    with pytest.raises(UserError) as caught:
        make(**{option: value})
    assert rule in str(caught.value)


def test_no_usable_line_is_an_error(tmp_path: Path, make: Callable[..., JsonlTaggedPackedDataset]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match=r"data\.train_path: no usable line in 1 files: the files are empty"):
        make(paths=empty)
    with pytest.raises(UserError, match="units are longer than"):
        make(seq_len=5, overflow="drop")

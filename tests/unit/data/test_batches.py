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


@pytest.mark.parametrize("seq_len", [2, 30, 96])
def test_inputs_and_labels_against_a_naive_reading(
    corpus: Path, tokenizer: UnitTokenizer, make: Callable[..., JsonlTaggedPackedDataset], seq_len: int
) -> None:
    units = expected_units(corpus, tokenizer)
    pad = tokenizer.pad_id
    for batch in islice(make(seq_len=seq_len), 20):
        assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
        assert batch.input_ids.shape == batch.labels.shape == (3, seq_len)
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
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.labels.device.type == "meta"
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

"""`preview`: packed sequences exactly as training gets them, and what is known about their units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.config.plain import data_seed
from molgen_pretrain.data.corpus import Corpus
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.mixture import Turns
from molgen_pretrain.data.position import Position, SourcePosition
from molgen_pretrain.data.sequences import Layout
from molgen_pretrain.data.token_classes import TOKEN_CLASSES, TokenClassifier
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.tools.data_target import DataTarget


@dataclass(frozen=True, slots=True)
class PackedUnit:
    """`kept` of the unit's `tokens` stand from position `start` on, its separator after them."""

    place: str
    start: int
    kept: int
    tokens: int

    @property
    def separator(self) -> int:
        return self.start + self.kept


@dataclass(frozen=True, kw_only=True)
class PackedSequence:
    """One row of a batch: `ids`, `labels` and, with a document mask, `position_ids`, all [seq_len].

    `label_classes` are names; None where the tokenizer's tokens cannot be told apart. Positions from `filled` on
    are padding.
    """

    name: str
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64] | None
    label_classes: list[str] | None
    units: tuple[PackedUnit, ...]
    filled: int


def read_sequences(target: DataTarget, *, count: int, first: int, epoch: int) -> Iterator[PackedSequence]:
    """`count` sequences from number `first` of an epoch on; of a mixture, which has no epochs, of the run.

    Raises UserError where there is no such sequence.
    """
    seq_len = target.cfg.data.seq_len
    corpus = target.open(seq_len)
    is_mixture = len(corpus.sources) > 1
    start = _start_of_mixture(corpus, first, epoch) if is_mixture else _start_of_epoch(corpus, first, epoch)
    dataset = _dataset(target)
    dataset.start_at(start)
    # The batches are the dataset's own; where the units lie in them is planned a second time beside it.
    cursor = corpus.cursor(corpus.starts(start), infinite=True)
    classifier = _classifier(target.tokenizer)
    number = first
    for batch in islice(dataset, count):
        planned = cursor.take(1)
        layout = Layout.of(planned, seq_len)
        spans = zip(layout.places.tolist(), layout.kept.tolist(), planned.counts.tolist(), strict=True)
        places = dataset.locate(batch.unit_ids[0])
        ids = batch.input_ids.numpy()
        classes = None if classifier is None else classifier.label_classes(ids, layout)[0].tolist()
        yield PackedSequence(
            name=f"sequence {number:,}" + ("" if is_mixture else f" of epoch {epoch}"),
            ids=ids[0],
            labels=batch.labels[0].numpy(),
            position_ids=None if batch.position_ids is None else batch.position_ids[0].numpy(),
            label_classes=None if classes is None else [TOKEN_CLASSES[number] for number in classes],
            units=tuple(PackedUnit(place, *span) for place, span in zip(places, spans, strict=True)),
            filled=batch.tokens,
        )
        number += 1
        if not is_mixture and batch.position.sources[""].epoch > epoch:
            number, epoch = 0, epoch + 1


def _dataset(target: DataTarget) -> JsonlTaggedPackedDataset:
    """One sequence per batch; validation data repeat, so that there is always a next one."""
    data = target.cfg.data
    return JsonlTaggedPackedDataset(
        sources=target.sources,
        tokenizer=target.tokenizer,
        seq_len=data.seq_len,
        local_batch_size=1,
        cache_dir=target.cache_dir,
        seed=data_seed(target.cfg),
        shuffle_lines=target.shuffle_lines,
        min_emb_len=data.min_emb_len,
        lookahead_limit=data.lookahead_limit,
        overflow=data.overflow.value,
        on_bad_line=data.on_bad_line.value,
        cache=data.cache.value,
        cache_budget_bytes=target.budget_bytes,
        index_processes=data.index_processes,
        document_mask=data.document_mask,
        setting=target.setting,
    )


def _start_of_epoch(corpus: Corpus, first: int, epoch: int) -> Position:
    planner = corpus.sources[0].planner
    left = first
    for block in range(planner.blocks):
        size = len(planner.plan_block(epoch, block))
        if left < size:
            return Position({"": SourcePosition(epoch, block, left, first)})
        left -= size
    raise UserError(f"--sequence={first}: epoch {epoch} has {first - left:,} sequences, numbered from 0")


def _start_of_mixture(corpus: Corpus, first: int, epoch: int) -> Position:
    if epoch:
        raise UserError(f"--epoch={epoch}: a mixture has no epochs of its own; give --sequence, counted from the start")
    turns = Turns([source.share for source in corpus.sources], [0] * len(corpus.sources))
    drawn = Counter(turns.take(first))
    # Offsets beyond a block mean the blocks, and the epochs, that follow.
    return Position(
        {s.name: SourcePosition(0, 0, drawn[number], drawn[number]) for number, s in enumerate(corpus.sources)}
    )


def _classifier(tokenizer: UnitTokenizer) -> TokenClassifier | None:
    try:
        return TokenClassifier(tokenizer)
    except UserError:  # training can do without classes, and so can people
        return None

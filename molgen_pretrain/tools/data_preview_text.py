"""The text of `preview`: decoded sequences with the borders of their units, and tables of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from rich.text import Text

from molgen_pretrain.data.batch import IGNORED_LABEL
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.tools.data_preview import PackedSequence, PackedUnit
from molgen_pretrain.tools.data_target import shown

_STYLES = {"smiles": "green", "tags": "bold magenta", "coordinates": "cyan", "conformer": "yellow"}


def preview_text(sequence: PackedSequence, tokenizer: UnitTokenizer, *, with_tokens: bool) -> Iterator[Text]:
    """A heading, each unit under its border, the padding; with `with_tokens` a line for each position too."""
    yield _heading(sequence)
    for number, unit in enumerate(sequence.units, start=1):
        yield _border(f"unit {number} of {len(sequence.units)}: {_unit_text(sequence, unit)}")
        yield _decoded(sequence, unit, tokenizer)
    if padding := len(sequence.ids) - sequence.filled:
        yield _border(f"padding: {padding:,} x {tokenizer.pad_token} from {sequence.filled:,} on, labels ignored")
    if with_tokens:
        yield from _token_lines(sequence, tokenizer)
    yield Text()


def _heading(sequence: PackedSequence) -> Text:
    size, units = len(sequence.ids), len(sequence.units)
    trained = int(np.count_nonzero(sequence.labels != IGNORED_LABEL))
    padding = size - sequence.filled
    rest = (
        f": {units} unit{'s' * (units != 1)}, {sequence.filled:,} of {size:,} positions filled,"
        f" {padding:,} padding ({100 * padding / size:.1f} %), {trained:,} labels trained"
    )
    return Text.assemble((sequence.name, "bold"), rest)


def _unit_text(sequence: PackedSequence, unit: PackedUnit) -> str:
    text = f"{shown(unit.place)}, {unit.kept:,} tokens and a separator, positions {unit.start:,} to {unit.separator:,}"
    if unit.kept < unit.tokens:
        text += f", CUT from {unit.tokens:,} tokens"
    if sequence.position_ids is not None:
        first, last = sequence.position_ids[[unit.start, unit.separator]].tolist()
        text += f", position_ids {first:,} to {last:,}"
    return text


def _border(text: str) -> Text:
    return Text(f"── {text} ──", style="dim")


def _decoded(sequence: PackedSequence, unit: PackedUnit, tokenizer: UnitTokenizer) -> Text:
    """The unit's text, coloured by class, and its separator; what is not trained is said to be ignored."""
    positions = range(unit.start, unit.separator)
    runs = [(name, list(run)) for name, run in groupby(positions, key=lambda place: _class_of(sequence, place))]
    parts = [(tokenizer.decode(sequence.ids[run].tolist()), _STYLES.get(name, "")) for name, run in runs]
    whole = tokenizer.decode(sequence.ids[unit.start : unit.separator].tolist())
    if "".join(text for text, _ in parts) != whole:
        parts = [(whole, "")]
    ignored = "  (label ignored)" if sequence.labels[unit.separator] == IGNORED_LABEL else ""
    return Text.assemble(*parts, (f"{tokenizer.pad_token}{ignored}", "dim"))


def _class_of(sequence: PackedSequence, place: int) -> str:
    """Classes are those of labels: a token's own stands one place before it. A row begins with a tag."""
    if sequence.label_classes is None:
        return ""
    return sequence.label_classes[place - 1] if place else "tags"


def _token_lines(sequence: PackedSequence, tokenizer: UnitTokenizer) -> Iterator[Text]:
    """A line for each position; those whose label is ignored are dim."""
    texts = {token: _quoted(tokenizer, token) for token in set(sequence.ids.tolist())}
    columns = {
        "position": [str(place) for place in range(len(sequence.ids))],
        "id": [str(token) for token in sequence.ids.tolist()],
        "token": [texts[token] for token in sequence.ids.tolist()],
        "label": ["ignored" if label == IGNORED_LABEL else str(label) for label in sequence.labels.tolist()],
        "": ["" if label == IGNORED_LABEL else texts[label] for label in sequence.labels.tolist()],
    }
    is_ignored = (sequence.labels == IGNORED_LABEL).tolist()
    if sequence.label_classes is not None:
        pairs = zip(sequence.label_classes, is_ignored, strict=True)
        columns["class of label"] = ["" if ignored else name for name, ignored in pairs]
    if sequence.position_ids is not None:
        columns["position_id"] = [str(position) for position in sequence.position_ids.tolist()]
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    yield Text("  ".join(f"{name:<{width}}" for name, width in widths.items()).rstrip(), style="bold")
    for row, ignored in zip(zip(*columns.values(), strict=True), is_ignored, strict=True):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths.values(), strict=True))
        yield Text(line.rstrip(), style="dim" if ignored else "")


def _quoted(tokenizer: UnitTokenizer, token: int) -> str:
    """The token's text on one line, spaces and all."""
    return repr(tokenizer.decode([token]))

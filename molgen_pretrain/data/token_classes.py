"""What kind of text each token stands for, from token ids alone.

A table made once per vocabulary holds the text of every id, so the text of a batch is one gather away, tags can
be found in it however many tokens they take, and a token's place in it says which part of its unit it begins in.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.sequences import Layout
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import format_unit
from molgen_pretrain.errors import UserError

# In the order of their numbers. smiles: between [SMILES] and [/SMILES]; tags: the four tags and the separator;
# coordinates: `<...>` in the conformer, brackets included; conformer: everything else in it.
TOKEN_CLASSES = ("smiles", "tags", "coordinates", "conformer")

_SMILES, _TAGS, _COORDINATES, _CONFORMER = range(len(TOKEN_CLASSES))
_OPENING, _CLOSING = 1, 2

_OPEN_TAG, _MIDDLE_TAGS, _END_TAG = (part.encode() for part in format_unit("|", "|").split("|"))
_MIDDLE = re.compile(re.escape(_MIDDLE_TAGS))
_PROBE = format_unit("CCO", "[C]<1.25,-0.94,0.00>[O]<-1.00,2.50,0.30>")


def count_classes(classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many tokens there are of each class, int64 [classes]."""
    return np.bincount(classes.reshape(-1), minlength=len(TOKEN_CLASSES))


class TokenClassifier:
    """Classes of the tokens of packed sequences.

    A token that begins in one class and ends in another has that of its first character. Of a truncated unit
    a tag that is cut counts as what stands before it. Raises UserError for a tokenizer whose tokens do not add
    up to the text that they were made from.
    """

    def __init__(self, tokenizer: UnitTokenizer) -> None:
        texts = _token_texts(tokenizer)
        self._lengths = np.array([len(text) for text in texts], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._blob = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._bracket = np.array([_last_bracket(text) for text in texts], dtype=np.uint8)
        self._opens = np.array([text.startswith(b"<") for text in texts])

    def label_classes(self, ids: NDArray, layout: Layout) -> NDArray[np.uint8]:
        """uint8 [rows, seq_len]: the class of each place's label, which is the token after it.

        ids: [rows, seq_len], laid out as `layout` says. Where there is no label the class means nothing.
        """
        classes = np.full(ids.shape, _TAGS, dtype=np.uint8)
        within = np.repeat(layout.places - (np.cumsum(layout.kept) - layout.kept), layout.kept)
        places = within + np.arange(len(within))
        # Classes of inputs, written one place earlier. A unit at the very beginning has no label before it,
        # and what wraps around lands on the last place, which has no label.
        classes.reshape(-1)[places - 1] = self._classes_of_units(ids.reshape(-1)[places], layout.kept)
        return classes

    def _classes_of_units(self, ids: NDArray, kept: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[tokens]: of units of `kept[i]` tokens that stand one after another without separators."""
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        begins = ends - lengths  # the byte where each token begins
        unit_ends = np.cumsum(kept)
        parts = self._parts_of_units(ids, lengths, begins, ends[unit_ends - 1])
        # From parts in bytes to parts in tokens: a token belongs where it begins.
        edges = np.searchsorted(begins, parts)
        edges[:, -1] = unit_ends
        names = np.tile(np.array([_TAGS, _SMILES, _TAGS, _CONFORMER, _TAGS], dtype=np.uint8), len(kept))
        classes = np.repeat(names, np.diff(edges.reshape(-1), prepend=0))
        # The token that the conformer may begin within.
        before = edges[:, 2] - 1
        in_brackets = self._in_brackets(ids, classes == _CONFORMER, before[ends[before] > parts[:, 2]])
        classes[(classes == _CONFORMER) & in_brackets] = _COORDINATES
        return classes

    def _parts_of_units(
        self, ids: NDArray, lengths: NDArray[np.int64], begins: NDArray[np.int64], unit_ends: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """[units, 5]: the bytes where opening tag, SMILES, middle tags, conformer and closing tag end."""
        text = self._blob[np.repeat(self._starts[ids] - begins, lengths) + np.arange(lengths.sum())].tobytes()
        starts = np.concatenate([[0], unit_ends[:-1]])
        middles = np.array([match.start() for match in _MIDDLE.finditer(text)] + [len(text)])
        # The first one in the unit; a unit that was cut before it has none.
        middle = np.minimum(middles[np.searchsorted(middles, starts)], unit_ends)
        conformer = np.minimum(middle + len(_MIDDLE_TAGS), unit_ends)
        closing = np.maximum(unit_ends - len(_END_TAG), conformer)
        is_whole = [text.startswith(_END_TAG, place) for place in closing.tolist()]
        closing = np.where(is_whole, closing, unit_ends)
        return np.stack([np.minimum(starts + len(_OPEN_TAG), unit_ends), middle, conformer, closing, unit_ends], axis=1)

    def _in_brackets(
        self, ids: NDArray, is_conformer: NDArray[np.bool_], straddling: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """[tokens]: whether the first character of a conformer's token is within `<...>` or one of the brackets.

        What was open before a conformer does not count, but for the tokens `straddling` its beginning.
        """
        bracket = np.where(is_conformer, self._bracket[ids], _CLOSING)
        bracket[straddling] = self._bracket[ids[straddling]]
        places = np.arange(len(ids))
        last = np.maximum.accumulate(np.where(bracket > 0, places, 0))
        is_open = np.zeros(len(ids), dtype=np.bool_)
        is_open[1:] = (bracket[last] == _OPENING)[:-1]
        return is_open | self._opens[ids]


def _token_texts(tokenizer: UnitTokenizer) -> list[bytes]:
    """The UTF-8 text of every id, as it is within a text: decoded after another token, which is cut off again."""
    before = tokenizer.decode([tokenizer.pad_id])
    texts = [tokenizer.decode([tokenizer.pad_id, token])[len(before) :].encode() for token in range(tokenizer.size)]
    if b"".join(texts[token] for token in tokenizer.encode_batch([_PROBE])[0]) != _PROBE.encode():
        raise UserError(
            "metrics.token_class_loss=true: the texts of this tokenizer's tokens do not add up to the text of a"
            " unit, so they cannot be told apart; set metrics.token_class_loss=false"
        )
    return texts


def _last_bracket(text: bytes) -> int:
    opening, closing = text.rfind(b"<"), text.rfind(b">")
    return 0 if opening == closing else _OPENING if opening > closing else _CLOSING

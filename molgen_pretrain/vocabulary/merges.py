"""The merges by which byte-pair encoding arrives at a token.

Encoding begins with the single bytes of a word and, as long as some pair of neighbours has a merge, applies the one of
lowest rank, leftmost first (Sennrich, Haddow, Birch 2016, algorithm 1). What happens inside the span of a token that
comes out never looks across the span's edges, so it is what happens to the token's text alone: the merges that fired
in any text are those on the paths of the tokens that it came out as.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

Pair = tuple[str, str]


def merge_paths(tokens: Iterable[str], ranks: Mapping[Pair, int]) -> set[Pair]:
    """The merges on the paths to `tokens`, each token a string of single-byte symbols.

    A token that its own text is not merged to never comes out of merges, and has no path.
    """
    needed: set[Pair] = set()
    for token in tokens:
        pieces, fired = _encode(token, ranks)
        if pieces == [token]:
            needed.update(fired)
    return needed


def _encode(text: str, ranks: Mapping[Pair, int]) -> tuple[list[str], list[Pair]]:
    """(what the word `text` comes out as, the merges in the order in which they fired)."""
    pieces, fired = list(text), []
    while places := [(ranks[pair], place) for place, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        _, place = min(places)
        fired.append((pieces[place], pieces[place + 1]))
        pieces[place : place + 2] = ["".join(fired[-1])]
    return pieces, fired

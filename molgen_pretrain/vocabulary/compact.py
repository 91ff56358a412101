"""A tokenizer with a part of another one's tokens that cuts the same texts at the same places."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from molgen_pretrain.errors import UserError
from molgen_pretrain.vocabulary.merges import merge_paths

# What the model of tokenizer.json must say for the reasoning of `merges` to hold.
_BYTE_LEVEL_BPE = {
    "type": ("BPE",),
    "dropout": (None,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}


def compact(base: Tokenizer, ids: Collection[int]) -> tuple[Tokenizer, list[int]]:
    """(the compact tokenizer, the base's id of each of its ids).

    It keeps the tokens `ids`, all added tokens and all single bytes, the merges on the paths to them with their
    products, and everything around the model: so a text that the base encodes with `ids` alone comes out as the same
    tokens (at each step the merge that the base applies is there, and no other is before it), and any other text
    comes out as tokens that decode to it. Ids are dense and in the base's order.

    Raises UserError for a base that is no byte-level BPE.
    """
    content = json.loads(base.to_str())
    model = content["model"]
    _check_model(model, content["post_processor"])
    vocabulary: dict[str, int] = model["vocab"]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    wanted = {*ids, *base.get_added_tokens_decoder(), *(vocabulary[byte] for byte in _single_bytes())}
    merges = merge_paths([text for text, token in vocabulary.items() if token in wanted], ranks)
    kept = sorted(wanted | {vocabulary[left + right] for left, right in merges})
    renumbered = {token: number for number, token in enumerate(kept)}
    model["vocab"] = {text: renumbered[token] for text, token in vocabulary.items() if token in renumbered}
    model["merges"] = sorted(merges, key=ranks.__getitem__)
    content["added_tokens"] = [{**entry, "id": renumbered[entry["id"]]} for entry in content["added_tokens"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    _check_texts(base, tokenizer, kept)
    return tokenizer, kept


def _single_bytes() -> list[str]:
    """How a byte-level vocabulary writes each of the 256 bytes."""
    return pre_tokenizers.ByteLevel.alphabet()


def _check_model(model: Mapping[str, Any], post_processor: Mapping[str, Any] | None) -> None:
    for field, legal in _BYTE_LEVEL_BPE.items():
        if model.get(field) not in legal:
            raise UserError(
                f"tokenizer.json: model.{field}={model[field]!r}: only byte-level BPE as Qwen3's can be made compact,"
                f" with {field}={legal[0]!r}"
            )
    if missing := [byte for byte in _single_bytes() if byte not in model["vocab"]]:
        raise UserError(
            f"tokenizer.json: {len(missing)} of the 256 single bytes have no token, so this is no byte-level BPE;"
            " only such can be made compact"
        )
    if post_processor is not None and post_processor["type"] != "ByteLevel":
        raise UserError(
            f"tokenizer.json: post_processor.type={post_processor['type']}: it adds tokens by id; only ByteLevel or"
            " none can be made compact"
        )


def _check_texts(base: Tokenizer, compact: Tokenizer, kept: list[int]) -> None:
    """The library numbers added tokens by itself: holds that against the numbers that were meant."""
    texts = {base.id_to_token(token): number for number, token in enumerate(kept)}
    if compact.get_vocab(with_added_tokens=True) != texts:
        raise UserError("tokenizer.json: added tokens have ids among the others, so no compact numbering fits them")

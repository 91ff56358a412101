"""More tokens behind those that a tokenizer has."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer

from molgen_pretrain.errors import UserError


def extend(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict[str, int]:
    """Adds `tokens`, in place and in this order, as the ids from the tokenizer's size on; the id of each.

    They are found wherever their text stands, before the text is cut into words. They do not count as special, so
    that decoding with skip_special_tokens keeps them. Raises UserError, without a change, for a text that is
    empty, named twice, or a token already.
    """
    for text in tokens:
        if not text:
            raise UserError("--tokens: an empty text cannot be a token; leave it out")
        if tokens.count(text) > 1:
            raise UserError(f"--tokens={text}: named twice; every token may be given once")
        if (token := _existing(tokenizer, text)) is not None:
            raise UserError(f"--tokens={text}: is a token already, with id {token}; leave it out")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in tokens])
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {text: vocabulary[text] for text in tokens}


def _existing(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of the token that `text` is, or that has `text` as its name: in a byte-level vocabulary the token of
    " a" is named "Ġa", and adding that would make the two one."""
    token = tokenizer.token_to_id(text)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ids[0] if token is None and len(ids) == 1 else token

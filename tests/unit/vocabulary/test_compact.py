"""Compact tokenizers against their bases: the same cuts where only kept tokens are met, the same text everywhere."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from molgen_pretrain.errors import UserError
from molgen_pretrain.vocabulary.compact import compact
from molgen_pretrain.vocabulary.folder import read_tokenizer

Encode = Callable[[Tokenizer, list[str]], list[list[int]]]
Merges = list[tuple[str, str]]


def byte_level(merges: Merges) -> Tokenizer:
    texts = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["[TAG]"])
    return tokenizer


def random_merges(rng: random.Random) -> Merges:
    """Products of products, in any order of ranks: some merges can never fire, some tokens have several paths."""
    tokens, merges = list("abc"), {}
    for _ in range(40):
        pair = (rng.choice(tokens), rng.choice(tokens))
        if len("".join(pair)) < 12:
            merges[pair] = None
            tokens.append("".join(pair))
    return rng.sample(list(merges), len(merges))


def random_words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abc", k=rng.randint(1, 25))) for _ in range(count)]


def fired_merges(words: list[str], merges: Merges) -> set[tuple[str, str]]:
    """By the definition, on whole words: the leftmost pair of the lowest rank, again and again."""
    ranks, fired = {pair: rank for rank, pair in enumerate(merges)}, set()
    for word in words:
        pieces = list(word)
        while found := [(ranks[pair], at) for at, pair in enumerate(pairwise(pieces)) if pair in ranks]:
            at = min(found)[1]
            fired.add((pieces[at], pieces[at + 1]))
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return fired


@pytest.mark.parametrize("seed", range(40))
def test_keeps_the_merges_that_fired_and_no_others(seed: int, encode: Encode) -> None:
    rng = random.Random(seed)
    merges = random_merges(rng)
    base, words = byte_level(merges), random_words(rng, 4)
    expected = encode(base, words)
    small, kept = compact(base, {token for ids in expected for token in ids})
    assert {tuple(pair) for pair in json.loads(small.to_str())["model"]["merges"]} == fired_merges(words, merges)
    assert [[kept[token] for token in ids] for ids in encode(small, words)] == expected
    others = [*random_words(rng, 50), "x[TAG]abcabc[TAG]"]
    assert [small.decode(ids) for ids in encode(small, others)] == others


def test_the_sample_is_cut_as_before(sample: Tokenizer, units: Callable[[], list[str]], encode: Encode) -> None:
    texts = units()
    expected = encode(sample, texts)
    small, kept = compact(sample, {token for ids in expected for token in ids})
    assert 256 < len(kept) < sample.get_vocab_size()
    assert small.get_vocab() == {sample.id_to_token(old): new for new, old in enumerate(kept)}
    assert [[kept[token] for token in ids] for ids in encode(small, texts)] == expected


@pytest.fixture(scope="module")
def real(qwen3: Callable, units: Callable[[Path], list[str]], encode: Encode) -> tuple[Any, ...]:
    """(Qwen3's tokenizer with the tags, real units, their ids, the compact tokenizer, kept ids)."""
    folder = qwen3("custom")
    base = read_tokenizer(folder, "tokenizer")
    texts = units(folder.parents[1] / "data" / "conformers" / "valid")
    expected = encode(base, texts)
    return base, texts, expected, *compact(base, {token for ids in expected for token in ids})


def test_real_conformers_are_cut_as_before(real: tuple[Any, ...], encode: Encode) -> None:
    base, texts, expected, small, kept = real
    assert len(expected) == 1439
    assert [[kept[token] for token in ids] for ids in encode(small, texts)] == expected
    assert 256 + 30 < len(kept) < 512
    assert kept == sorted(kept)
    assert set(base.get_added_tokens_decoder()) < set(kept)
    assert {base.token_to_id(byte) for byte in pre_tokenizers.ByteLevel.alphabet()} < set(kept)


def test_any_text_is_encoded_and_decoded(real: tuple[Any, ...], encode: Encode) -> None:
    small = real[3]
    fragments = st.sampled_from(["[SMILES]", "<|endoftext|>", "[C@@H]", "<-1.25,", "Ġ", "\u0301", "\U0001f600", "\r\n"])

    @given(st.lists(st.text(max_size=12) | fragments).map("".join))
    def check(text: str) -> None:
        [ids] = encode(small, [text])
        # The base composes characters before it looks at them (NFC).
        assert small.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)

    check()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"model": {"byte_fallback": True}}, "model.byte_fallback=True"),
        ({"model": {"ignore_merges": True}}, "model.ignore_merges=True"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "255 of the 256 single bytes have no token"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["a", 1], "cls": ["a", 1]}}, "BertProcessing"),
    ],
)
def test_refuses_what_is_no_byte_level_bpe(change: dict[str, Any], rule: str) -> None:
    content = json.loads(byte_level([("a", "b")]).to_str())
    content["model"] |= change.pop("model", {})
    with pytest.raises(UserError, match=rule):
        compact(Tokenizer.from_str(json.dumps(content | change)), [0])

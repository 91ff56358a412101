"""Classes from token ids, compared with classes of characters in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.sequences import Layout, Sequences
from molgen_pretrain.data.token_classes import TOKEN_CLASSES, TokenClassifier
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import format_unit
from molgen_pretrain.errors import UserError

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared"
SMILES, TAGS, COORDINATES, CONFORMER = range(4)
UNIT = re.compile(r"(\[SMILES\])(.*?)(\[/SMILES\]\[CONFORMER\])(.*)(\[/CONFORMER\])", re.DOTALL)


def classes_of_characters(text: str) -> list[int]:
    """Character by character, as the definition reads."""
    match = UNIT.fullmatch(text)
    assert match is not None
    opening, smiles, middle, _, closing = map(len, match.groups())
    inside = []
    is_open = False
    for character in match[4]:
        is_open = is_open or character == "<"
        inside.append(COORDINATES if is_open else CONFORMER)
        is_open = is_open and character != ">"
    return [TAGS] * opening + [SMILES] * smiles + [TAGS] * middle + inside + [TAGS] * closing


def check(classifier: TokenClassifier, tokenizer: Tokenizer, pad: int, texts: Sequence[str], seq_len: int) -> None:
    """Classes of units packed two to a row, against those of each token's first character."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    counts = np.array([len(encoding) for encoding in encodings])
    bounds = np.minimum(np.arange(0, len(texts) + 2, 2), len(texts))
    layout = Layout.of(Sequences(np.arange(len(texts)), counts, bounds), seq_len)
    ids = np.full((len(bounds) - 1, seq_len), pad, dtype=np.uint32)
    expected = np.full(ids.size, TAGS)
    for place, kept, text, encoding in zip(layout.places, layout.kept, texts, encodings, strict=True):
        of_characters = classes_of_characters(text)
        ids.reshape(-1)[place : place + kept] = encoding.ids[:kept]
        expected[place : place + kept] = [of_characters[start] for start, _ in encoding.offsets[:kept]]
    classes = classifier.label_classes(ids, layout)
    assert classes.dtype == np.uint8
    assert classes[:, :-1].tolist() == expected.reshape(ids.shape)[:, 1:].tolist()


def real_units(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            yield format_unit(record["canonical_smiles"], record["embedded_smiles"])


@pytest.mark.parametrize("folder", ["sample", "qwen3_custom", "qwen3_origin"])
def test_classes_of_real_units(folder: str) -> None:
    """With tags of one token and of several, and tokens that begin in one class and end in another."""
    path = SAMPLE_DIR / "tokenizer" if folder == "sample" else SHARED / "tokenizers" / folder
    if not path.is_dir():
        pytest.skip("the shared tokenizers are not here")
    tokenizer = UnitTokenizer.load(path)
    texts = list(islice(real_units(SAMPLE_DIR / "train"), 60))
    reference = Tokenizer.from_file(str(path / "tokenizer.json"))
    check(TokenClassifier(tokenizer), reference, tokenizer.pad_id, texts, 6000)


@pytest.fixture(scope="module")
def merging_tokenizer(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Bytes, some merged over the borders of classes, and no tag that is one token."""
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] == "<|endoftext|>"]
    merges = [["]", "<"], ["]", "["], [">", "["], ["<", "-"], ["C", "["], [">", "<"], ["R", "]"], ["R]", "<"]]
    vocabulary = content["model"]["vocab"]
    for left, right in merges:
        vocabulary[left + right] = 300 + len(vocabulary)
    content["model"]["merges"] = merges
    folder = tmp_path_factory.mktemp("merging")
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    return folder


ODD = st.text(alphabet="C<>[]-é/", max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ODD, ODD), min_size=1, max_size=5))
def test_classes_of_odd_units(merging_tokenizer: Path, pairs: list[tuple[str, str]]) -> None:
    """Brackets where none belong, none where some do, and a conformer that begins with coordinates."""
    tokenizer = UnitTokenizer.load(merging_tokenizer)
    reference = Tokenizer.from_file(str(merging_tokenizer / "tokenizer.json"))
    texts = [format_unit(smiles, conformer) for smiles, conformer in pairs]
    check(TokenClassifier(tokenizer), reference, tokenizer.pad_id, texts, 200)


@pytest.mark.parametrize("seq_len", [2, 9, 31, 60])
def test_truncated_units_keep_their_classes(tokenizer: UnitTokenizer, tokenizer_folder: Path, seq_len: int) -> None:
    reference = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    texts = [format_unit("C" * 20, "[C]<1.0,2.0,-3.0>" * 3)] * 2
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    sequences = Sequences(np.arange(2), np.array([len(e) for e in encodings]), np.array([0, 1, 2]))
    layout = Layout.of(sequences, seq_len)
    ids = np.array([[*e.ids[: seq_len - 1], tokenizer.pad_id] for e in encodings], dtype=np.uint16)
    classes = TokenClassifier(tokenizer).label_classes(ids, layout)
    of_characters = classes_of_characters(texts[0])
    expected = [of_characters[start] for start, _ in encodings[0].offsets[1 : seq_len - 1]]
    assert [row[: seq_len - 2].tolist() for row in classes] == [expected, expected]


@pytest.mark.parametrize("cache", ["lengths", "tokens"])
def test_batches_bring_the_classes_of_their_labels(cache: str, tmp_path: Path) -> None:
    tokenizer = UnitTokenizer.load(SAMPLE_DIR / "tokenizer")
    dataset = JsonlTaggedPackedDataset(
        paths=SAMPLE_DIR / "valid", tokenizer=tokenizer, seq_len=1024, local_batch_size=2, cache_dir=tmp_path,
        cache=cache, token_classes=True,
    )  # fmt: skip
    batches = list(islice(build_loader(dataset, num_workers=1), 10))
    texts: dict[int, str] = {}
    for batch in batches:
        assert batch.token_classes is not None
        for number in range(len(TOKEN_CLASSES)):
            chosen = batch.labels[(batch.token_classes == number) & (batch.labels != -100)]
            texts[number] = texts.get(number, "") + tokenizer.decode(chosen.tolist())
            assert batch.class_tokens is not None
            assert batch.class_tokens[number] == len(chosen)
    assert re.fullmatch(r"[^<>,]+", texts[SMILES])
    assert set(re.findall(r"\[[^]]*\]|<[^>]*>|.", texts[TAGS])) == {
        "[SMILES]", "[/SMILES]", "[CONFORMER]", "[/CONFORMER]", "<|endoftext|>"
    }  # fmt: skip
    assert not re.search(r"[A-Za-z\[\]]", texts[COORDINATES])  # a token may hold what follows its `>`
    assert re.search(r"\[?[A-Za-z]", texts[CONFORMER])


def test_a_tokenizer_that_loses_text_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    with pytest.raises(UserError, match=r"metrics\.token_class_loss=true: the texts of this tokenizer's tokens"):
        TokenClassifier(UnitTokenizer.load(tmp_path))

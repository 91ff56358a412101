"""Real conformers with the real tokenizer; skipped where the folder beside the checkout is absent."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.tokenizer import UnitTokenizer

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared"

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")


@pytest.fixture(scope="module")
def real_tokenizer() -> UnitTokenizer:
    return UnitTokenizer.load(SHARED / "tokenizers" / "qwen3_custom")


@pytest.mark.parametrize("seq_len", [2048, 4096])
def test_packing_of_real_lengths(
    real_tokenizer: UnitTokenizer, tmp_path_factory: pytest.TempPathFactory, seq_len: int
) -> None:
    dataset = JsonlTaggedPackedDataset(
        paths=SHARED / "data" / "conformers" / "valid",
        tokenizer=real_tokenizer,
        seq_len=seq_len,
        local_batch_size=1,
        cache_dir=tmp_path_factory.getbasetemp() / "shared-cache",
    )
    summary = dataset.summary()
    assert (summary.lines, summary.units, summary.bad_lines) == (1439, 1439, {})
    fewest = -(-summary.tokens // seq_len)
    assert dataset.sequences_in_epoch() <= fewest + 1
    batch = next(iter(dataset))
    text = real_tokenizer.decode(batch.input_ids[0].tolist())
    assert text.startswith("[SMILES]")
    assert text.count("[/CONFORMER]<|endoftext|>") == len(batch.unit_ids[0])


def test_ids_are_those_of_transformers(real_tokenizer: UnitTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    folder = SHARED / "tokenizers" / "qwen3_custom"
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert (real_tokenizer.pad_id, real_tokenizer.size) == (reference.pad_token_id, len(reference))
    with (SHARED / "data" / "conformers" / "valid" / "valid_data_0.jsonl").open() as file:
        texts = [f"[SMILES]{line}[/CONFORMER]" for line in islice(file, 20)]
    assert real_tokenizer.encode_batch(texts) == reference(texts, add_special_tokens=False)["input_ids"]

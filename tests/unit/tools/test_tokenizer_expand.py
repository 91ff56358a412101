"""The tokenizer tool's expand: the same model with all rows, which never writes a token that it did not have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.units import parse_unit
from molgen_pretrain.model import hf_expand
from molgen_pretrain.tools.tokenizer import main
from molgen_pretrain.vocabulary.compaction import read_compaction

BASE = SAMPLE_DIR / "tokenizer"
BASE_ROWS = 384
LINES = (SAMPLE_DIR / "train" / "train_0.jsonl").read_bytes().splitlines(keepends=True)[:20]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "initializer_range": 0.3,
}
Tool = Callable[..., str]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tool:
    monkeypatch.setenv("MOLGEN_CACHE", str(tmp_path / "cache"))

    def run(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


@pytest.fixture
def compact(tool: Tool, tmp_path: Path) -> Path:
    """A folder with a compact tokenizer, for a model to be saved in."""
    (tmp_path / "data.jsonl").write_bytes(b"".join(LINES))
    words = ("--data", tmp_path / "data.jsonl", "--processes", "1", "--out", tmp_path / "compact")
    tool("compact", BASE, *words)
    return tmp_path / "compact"


def save_model(folder: Path, *, rows: int, shared: float = 0.0, tied: bool = True, **sizes: int) -> Qwen3ForCausalLM:
    """Random weights. `shared` is added to all rows, which gives hidden states a part in common, as training does."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SIZES, "vocab_size": rows, "tie_word_embeddings": tied, **sizes}))
    with torch.no_grad():
        model.model.embed_tokens.weight += shared
    model.save_pretrained(folder)
    return model.eval()


def save_compact_model(folder: Path, **choices: float) -> tuple[Qwen3ForCausalLM, Tensor]:
    """(the model, the base's id of each of its tokens)."""
    record = read_compaction(folder)
    assert record is not None
    return save_model(folder, rows=record.padded_rows, **choices), torch.tensor(record.kept_ids)


def unused_among(ids: Tensor, kept_ids: Tensor) -> int:
    return int((~torch.isin(ids, kept_ids)).sum())


def generate(model: Qwen3ForCausalLM, **choices: object) -> Tensor:
    torch.manual_seed(1)
    start = torch.full((64, 1), 0)
    return model.generate(start, attention_mask=torch.ones_like(start), min_new_tokens=20, max_new_tokens=20, **choices)


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model_with_all_rows(
    tool: Tool, compact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setattr(hf_expand, "_ROWS_AT_A_TIME", 100)
    small, kept_ids = save_compact_model(compact, tied=tied)
    (compact / "README.md").write_text("# a run\n")
    out = tmp_path / "full"
    output = tool("expand", compact, "--base", BASE, "--out", out, "--max-shard-size", "20KB")
    full, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (out / "tokenizer.json").read_bytes() == (BASE / "tokenizer.json").read_bytes()
    assert full.config.vocab_size == BASE_ROWS
    assert full.config.eos_token_id == full.generation_config.eos_token_id == tokenizer.pad_token_id
    assert (out / "README.md").read_text().startswith("# a run\n\n## Full vocabulary\n")
    unit = parse_unit(LINES[0], 0)
    ids = tokenizer(unit, return_tensors="pt")["input_ids"]
    small_ids = AutoTokenizer.from_pretrained(compact)(unit, return_tensors="pt")["input_ids"]
    assert torch.equal(kept_ids[small_ids], ids)
    with torch.inference_mode():
        expected = small(small_ids).logits[..., : len(kept_ids)]
        torch.testing.assert_close(full(ids).logits[..., kept_ids], expected, rtol=0, atol=1e-5)
    # Nothing can be said of the states of random weights, which the tool finds out: then generate has to be told.
    assert "no row keeps its logit" in output
    for choices in ({"do_sample": True, "top_k": 0}, {"do_sample": False}, {"do_sample": False, "num_beams": 2}):
        assert unused_among(generate(full, **choices), kept_ids) == 0
    assert unused_among(generate(full, do_sample=True, top_k=0, suppress_tokens=None), kept_ids) > 0
    assert unused_among(generate(full, do_sample=False, suppress_tokens=None), kept_ids) == 0


@pytest.mark.parametrize(("tied", "dtype"), [(True, "float32"), (True, "bfloat16"), (False, "bfloat16")])
def test_masked_rows_hold_samplers_that_are_told_nothing(
    tool: Tool, compact: Path, tmp_path: Path, tied: bool, dtype: str
) -> None:
    _, kept_ids = save_compact_model(compact, shared=2.0, tied=tied)
    out = tmp_path / "full"
    output = tool("expand", compact, "--base", BASE, "--out", out, "--dtype", dtype)
    assert "masked: their logits stay" in output
    full = AutoModelForCausalLM.from_pretrained(out)
    assert str(full.dtype) == f"torch.{dtype}"
    ids = generate(full, do_sample=True, top_k=0, temperature=2.0, suppress_tokens=None)
    assert unused_among(ids, kept_ids) == 0
    with torch.inference_mode():
        probabilities = full(ids).logits.double().softmax(dim=-1)
    unused = torch.tensor(sorted(set(range(BASE_ROWS)) - set(kept_ids.tolist())))
    assert probabilities[..., unused].sum(dim=-1).max() < 1e-12


@pytest.mark.parametrize("rows", [360, 400])
def test_unused_rows_from_the_snapshot(tool: Tool, compact: Path, tmp_path: Path, rows: int) -> None:
    small, kept_ids = save_compact_model(compact, tied=False)
    source = save_model(tmp_path / "snapshot", rows=rows, tied=False)
    out = tmp_path / "full"
    words = ("--unused", "snapshot", "--snapshot", tmp_path / "snapshot", "--out", out)
    tool("expand", compact, "--base", BASE, *words)
    weights = load_file(out / "model.safetensors")
    for name in (EMBEDDING, HEAD):
        expected = torch.empty(max(rows, BASE_ROWS), 32)
        kept = small.state_dict()[name][: len(kept_ids)]
        expected[:] = kept.mean(dim=0)  # for those that the snapshot lacks
        expected[:rows] = source.state_dict()[name]
        expected[kept_ids] = kept
        assert torch.equal(weights[name], expected)
    full = AutoModelForCausalLM.from_pretrained(out)
    assert unused_among(generate(full, do_sample=True, top_k=0), kept_ids) == 0


def test_what_does_not_go_together_is_a_message_and_leaves_nothing(tool: Tool, compact: Path, tmp_path: Path) -> None:
    save_compact_model(compact)
    out = tmp_path / "full"
    expand = ("expand", compact, "--out", out)
    assert "--base=nowhere" in tool(*expand, "--base", "nowhere/at/all", code=1)
    assert "--base=" in (text := tool(*expand, "--base", BASE, "--unused", "snapshot", code=1))
    assert "cannot read config.json" in text
    save_model(tmp_path / "other", rows=360, hidden_size=64)
    words = ("--base", BASE, "--unused", "snapshot", "--snapshot", tmp_path / "other")
    assert "hidden_size is 64, the compact model's is 32" in tool(*expand, *words, code=1)
    content = json.loads((BASE / "tokenizer.json").read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "[SMILES]"]
    poorer = tmp_path / "poorer"
    poorer.mkdir()
    (poorer / "tokenizer.json").write_text(json.dumps(content))
    assert "has not the compact model's [SMILES]; give" in tool(*expand, "--base", poorer, code=1)
    save_model(compact, rows=100)
    assert "tokens, but 100 rows" in tool(*expand, "--base", BASE, code=1)
    assert not list(tmp_path.glob("*full*"))

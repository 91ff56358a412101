"""The export tool, in process: a run's checkpoint as a folder that transformers loads, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.tools import export_source
from molgen_pretrain.tools.export import main

MODEL = {
    "vocab_size": 384,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 50,
    "tie_word_embeddings": True,
    "rope_theta": 500_000.0,
}
Tool = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with steps 4 and 8."""
    root = tmp_path / "a-run"
    root.mkdir()
    for seed in (4, 8):
        state = {"progress": {"step": seed, "tokens": 4096}, "schedule": {"schedule": "WSDS", "lr_max": 1e-3}}
        Checkpointer(root / "checkpoint", keep_latest_k=0).save(seed, model=model(seed), optimizer=None, state=state)
    config = {
        "model": {**MODEL, "loss_chunk_tokens": 0},
        "data": {"sources": [], "train_path": "/data/conformers/train", "tokenizer": str(SAMPLE_DIR / "tokenizer")},
        "training": {"seq_len": 128, "steps": 8},
        "init": {"mode": "scratch"},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    (root / "metrics.jsonl").write_text('{"kind": "train", "step": 4, "loss": 2.5}\n')
    return root


def model(seed: int) -> Qwen3ForCausalLM:
    built = build_on_meta(Qwen3Arch(**MODEL).hf_config(eos_token_id=0, pad_token_id=0))
    materialize(built, device=torch.device("cpu"), seed=seed)
    return built


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    for name in ("RANK", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return call


@pytest.mark.parametrize("piece_bytes", [1000, 32 * 2**20])
def test_the_newest_checkpoint_is_written_bit_for_bit(
    run: Path, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(export_source, "PIECE_BYTES", piece_bytes)
    out = tmp_path / "out"
    text = tool(run, out, "--dtype", "float32", "--max-shard-size", "40KB")
    assert "step-00000008 in float32" in text
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for (name, value), expected in zip(loaded.named_parameters(), model(8).parameters(), strict=True):
        assert torch.equal(value, expected), name
    assert loaded.config.rope_parameters["rope_theta"] == 500_000
    assert loaded.config.eos_token_id == AutoTokenizer.from_pretrained(out).pad_token_id
    card = (out / "README.md").read_text()
    for line in ("# a-run, step 8", "conformers/train", "lr_max=0.001", "train loss | 2.5000 (step 4)"):
        assert line in card


def test_one_step_in_bfloat16_with_another_tokenizer(run: Path, tool: Tool, tmp_path: Path) -> None:
    tokenizer = shutil.copytree(SAMPLE_DIR / "tokenizer", tmp_path / "tokenizer")
    (tokenizer / "compaction.json").write_text("{}")
    out = tmp_path / "out"
    assert "step-00000004 in bfloat16" in tool(run / "checkpoint/step-00000004", out, "--tokenizer", tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype is torch.bfloat16
    for (name, value), expected in zip(loaded.named_parameters(), model(4).parameters(), strict=True):
        assert torch.equal(value, expected.bfloat16()), name
    assert (out / "compaction.json").exists()


def edit_config(run: Path, section: str, **changes: object) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section].update(changes)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_mistakes_and_damage_are_messages_and_leave_nothing(run: Path, tool: Tool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "exists already" in tool(run, run, code=1)
    assert "max_shard_size=two: no size" in tool(run, out, "--max-shard-size", "two", code=1)
    assert "--tokenizer=nowhere: no such folder" in tool(run, out, "--tokenizer", "nowhere", code=1)
    assert "--config FILE" in tool(run, out, "--config", run / "none.yaml", code=1)
    (tmp_path / "other.yaml").write_text("model: {}")
    assert "not the config.yaml of a run" in tool(run, out, "--config", tmp_path / "other.yaml", code=1)
    edit_config(run, "model", hidden_size=64, tie_word_embeddings=False)
    assert "does not fit this model" in tool(run, out, code=1)
    edit_config(run, "model", tie_word_embeddings=True)
    text = tool(run, out, code=1)
    assert "embed_tokens.weight: torch.float32 (384, 32) in the checkpoint, torch.float32 (384, 64) in the" in text
    edit_config(run, "model", hidden_size=32)
    with open(run / "checkpoint/step-00000008/rank-00000.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert "rank-00000.safetensors: its checksum is not the one written" in tool(run, out, code=1)
    assert not list(tmp_path.glob("*out*"))

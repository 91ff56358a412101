"""Weights from a snapshot into our model and out again: what transformers computes, and which rows are new."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3ForCausalLM

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_card import model_card
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.hf_load import RowPlan, load_snapshot
from molgen_pretrain.model.hf_snapshot import Snapshot
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize

MakeSnapshot = Callable[..., tuple[Path, Qwen3ForCausalLM]]
CPU = torch.device("cpu")
QWEN3_ROWS, QWEN3_TOKENS, CUSTOM_TOKENS = 151_936, 151_669, 151_673


def load(folder: Path, plan: Callable[[Snapshot], RowPlan] | None = None, *, seed: int = 1) -> Qwen3ForPretraining:
    """Our model from a snapshot; without a plan with its very rows."""
    snapshot = Snapshot.open(folder)
    rows = same(snapshot) if plan is None else plan(snapshot)
    arch = dataclasses.replace(Qwen3Arch(**snapshot.sizes), vocab_size=len(rows.old_rows))
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0))
    fill = partial(load_snapshot, snapshot=snapshot, plan=rows, seed=seed)
    materialize(model, device=CPU, seed=seed, load=fill)
    return model


def same(snapshot: Snapshot) -> RowPlan:
    return RowPlan.extended(snapshot, base_tokens=snapshot.rows, tokens=snapshot.rows, rows=snapshot.rows)


def extended(snapshot: Snapshot, **changes: Any) -> RowPlan:
    """As for Qwen3's tokenizer with the four tags."""
    settings = {"base_tokens": QWEN3_TOKENS, "tokens": CUSTOM_TOKENS, "rows": QWEN3_ROWS, **changes}
    return RowPlan.extended(snapshot, **settings)


def logits(model: Qwen3ForCausalLM, input_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return Qwen3ForCausalLM.forward(model, input_ids=input_ids).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_shard_size", ["4GB", "10KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_weights_are_those_of_transformers(
    make_snapshot: MakeSnapshot, tmp_path: Path, tied: bool, max_shard_size: str, dtype: torch.dtype
) -> None:
    folder, source = make_snapshot(dtype=dtype, max_shard_size=max_shard_size, tie_word_embeddings=tied)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = load(folder)
    input_ids = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(0))
    assert logits(ours, input_ids).std() > 0.5
    torch.testing.assert_close(logits(ours, input_ids), logits(theirs, input_ids), atol=1e-5, rtol=0)

    written = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
    export_hf(ours, folder, tmp_path / "out", is_writer=True, dtype=written, max_shard_size=max_shard_size)
    assert (tmp_path / "out" / "model.safetensors").exists() == (max_shard_size == "4GB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype is written
    for (name, value), (other, expected) in zip(again.named_parameters(), source.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(value.float(), expected.float()), name
    torch.testing.assert_close(logits(load(tmp_path / "out"), input_ids), logits(ours, input_ids), atol=0, rtol=0)


def test_an_export_has_the_files_and_the_config_that_others_read(make_snapshot: MakeSnapshot, tmp_path: Path) -> None:
    folder, _ = make_snapshot(max_shard_size="10KB")
    tokenizer, target = tmp_path / "tokenizer", tmp_path / "out"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "compaction.json", "config.json", "adapter_config.json"):
        (tokenizer / name).write_text('{"of": "tokenizer"}')
    export_hf(load(folder), tokenizer, target, is_writer=True, max_shard_size="10KB", card="a card")
    assert (target / "README.md").read_text() == "a card"
    assert (target / "compaction.json").read_text() == (target / "tokenizer.json").read_text()
    assert not (target / "adapter_config.json").exists()
    config = json.loads((target / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500_000
    assert AutoConfig.from_pretrained(target).rope_parameters["rope_theta"] == 500_000
    index = json.loads((target / "model.safetensors.index.json").read_text())
    stored = {file.name: load_file(file) for file in target.glob("*.safetensors")}
    assert {name: file for file, tensors in stored.items() for name in tensors} == index["weight_map"]
    assert all(sum(tensor.nbytes for tensor in tensors.values()) <= 10_000 for tensors in stored.values())
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in stored.values() for t in tensors.values())


def test_an_export_that_fails_leaves_nothing(make_snapshot: MakeSnapshot, tmp_path: Path) -> None:
    model = load(make_snapshot()[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        export_hf(model, tmp_path, tmp_path / "file" / "out", is_writer=True)
    with pytest.raises(UserError, match="max_shard_size=2xx"):
        export_hf(model, tmp_path, tmp_path / "out", is_writer=True, max_shard_size="2xx")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "snapshot"}


@pytest.mark.parametrize("new_tokens", ["normal", "mean"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_the_added_tokens_rows_are_new(make_snapshot: MakeSnapshot, tied: bool, new_tokens: str) -> None:
    folder, source = make_snapshot(
        vocab_size=QWEN3_ROWS, num_hidden_layers=1, tie_word_embeddings=tied, dtype=torch.bfloat16
    )
    model = load(folder, partial(extended, new_tokens=new_tokens))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    tables = {"embed_tokens": (model.model.embed_tokens, source.model.embed_tokens)}
    if not tied:
        tables["lm_head"] = (model.lm_head, source.lm_head)
    for name, (ours, theirs) in tables.items():
        new, old = ours.weight.detach(), theirs.weight.detach().float()
        assert (new != old).any(dim=1).nonzero().flatten().tolist() == [151669, 151670, 151671, 151672], name
        added = new[QWEN3_TOKENS:CUSTOM_TOKENS]
        if new_tokens == "mean":
            torch.testing.assert_close(added, old[:QWEN3_TOKENS].double().mean(dim=0).float().expand(4, -1))
        else:
            assert added.std().item() == pytest.approx(32**-0.5, rel=0.2)  # of 128 numbers
            assert len(added.unique()) == added.numel()
    if not tied and new_tokens == "normal":
        rows = slice(QWEN3_TOKENS, CUSTOM_TOKENS)
        assert not torch.equal(model.lm_head.weight[rows], model.model.embed_tokens.weight[rows])


def test_new_rows_are_normal_and_depend_on_the_seed_alone(make_snapshot: MakeSnapshot) -> None:
    folder, source = make_snapshot()
    plan = partial(RowPlan.extended, base_tokens=50, tokens=4000, rows=4096)

    def table(seed: int) -> Tensor:
        return load(folder, plan, seed=seed).model.embed_tokens.weight.detach()

    rows = table(1)
    assert torch.equal(rows[:50], source.model.embed_tokens.weight[:50])
    assert rows[50:].std().item() == pytest.approx(32**-0.5, rel=0.01)
    assert rows[50:].mean().abs() < 0.002
    torch.manual_seed(5)
    assert torch.equal(table(1), rows)
    assert not torch.isclose(table(2)[50:], rows[50:]).any(dim=1).all()


def test_rows_behind_the_tokens_are_copied_as_far_as_there_are_any(make_snapshot: MakeSnapshot) -> None:
    folder, source = make_snapshot()
    old = source.model.embed_tokens.weight
    for rows in (56, 61, 64):
        new = load(folder, partial(RowPlan.extended, base_tokens=50, tokens=52, rows=rows)).model.embed_tokens.weight
        unlike = [row for row in range(rows) if row >= 61 or not torch.equal(new[row], old[row])]
        assert unlike == [row for row in (50, 51, 61, 62, 63) if row < rows]
        assert new.abs().sum(dim=1).min() > 0


def test_rows_are_gathered_by_their_old_ids(make_snapshot: MakeSnapshot) -> None:
    folder, source = make_snapshot(tie_word_embeddings=False)
    old_ids = [3, 4, 5, None, 60, 0, 17, 18]
    plan = partial(RowPlan.gathered, old_ids=old_ids, base_tokens=61, rows=16, new_tokens="mean")
    model = load(folder, plan)
    kept = [old for old in old_ids if old is not None]
    places = [new for new, old in enumerate(old_ids) if old is not None]
    for ours, theirs in ((model.model.embed_tokens, source.model.embed_tokens), (model.lm_head, source.lm_head)):
        assert torch.equal(ours.weight[places], theirs.weight[kept])
        mean = theirs.weight.detach().double().mean(dim=0).float()
        assert all(torch.equal(ours.weight[row], mean) for row in (3, *range(8, 16)))
    new_ids = torch.tensor([places])
    expected = logits(source, torch.tensor([kept]))[..., kept]
    torch.testing.assert_close(logits(model, new_ids)[..., places], expected, atol=1e-5, rtol=0)


def test_a_tokenizer_that_is_not_the_snapshots_is_refused(make_snapshot: MakeSnapshot) -> None:
    snapshot = Snapshot.open(make_snapshot()[0])
    with pytest.raises(UserError, match="61 rows and its tokenizer 151669 tokens"):
        extended(snapshot)


def test_the_card_tells_what_the_model_saw() -> None:
    rows = [
        {"kind": "train", "step": 10, "loss": 3.0},
        {"kind": "validation", "step": 10, "loss": 2.5},
        {"kind": "train", "step": 20, "loss": 2.0},
        {"kind": "train", "step": 30, "loss": 1.0},
    ]
    card = model_card(
        run_name="a-run",
        config={
            "data": {"sources": [], "train_path": ["/secret/place/b/train", "/c/d.jsonl"], "tokenizer": "/e/f/g"},
            "training": {"seq_len": 2048, "steps": 40},
            "init": {"mode": "hf_pretrain", "from": "Qwen/Qwen3-0.6B"},
        },
        state={"progress": {"step": 20, "tokens": 81920}, "schedule": {"schedule": "WSDS", "lr_max": 1e-3, "x": None}},
        rows=rows,
        parameters=1_000_000,
        dtype="bfloat16",
    )
    for line in (
        "# a-run, step 20",
        "| data | b/train, c/d.jsonl |",
        "| tokenizer | f/g |",
        "| steps | 20 of 40 |",
        "| tokens trained on | 81,920 |",
        "| schedule | WSDS: lr_max=0.001 |",
        "| weights began as | hf_pretrain from Qwen/Qwen3-0.6B |",
        "| parameters | 1,000,000, bfloat16 |",
        "| train loss | 2.0000 (step 20) |",
        "| validation loss | 2.5000 (step 10) |",
    ):
        assert line in card
    assert "secret" not in card

"""Checkpoints under TorchTitan's names, made with PyTorch's own writer and without TorchTitan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, ROWS, LAYERS = 6, 2, 8, 24, 50, 2

# Spelled out, so that the tables of the package are compared with something.
OUTSIDE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "lm_head"}
IN_BLOCK = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.qkv_linear.wq",
    "self_attn.k_proj": "attention.qkv_linear.wk",
    "self_attn.v_proj": "attention.qkv_linear.wv",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def titan_names(*, tied: bool, older: bool = False) -> dict[str, str]:
    """Hugging Face name -> TorchTitan's, of every trained parameter."""
    names = {
        f"{ours}.weight": f"{theirs}.weight" for ours, theirs in OUTSIDE.items() if not (tied and ours == "lm_head")
    }
    for layer in range(LAYERS):
        for ours, theirs in IN_BLOCK.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"layers.{layer}.{theirs}.weight"
    if older:
        names = {ours: theirs.replace("qkv_linear.", "").replace("lm_head", "output") for ours, theirs in names.items()}
    return names


def make_model(*, tied: bool, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=ROWS,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            intermediate_size=40,
            tie_word_embeddings=tied,
            initializer_range=0.5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


def fuse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of all heads, a key/value head's group of queries first, head by head."""
    rows, group = [], HEADS // KV_HEADS
    for kv_head in range(KV_HEADS):
        heads = range(kv_head * group, (kv_head + 1) * group)
        rows += [q[head * HEAD_DIM : (head + 1) * HEAD_DIM] for head in heads]
        rows += [each[kv_head * HEAD_DIM : (kv_head + 1) * HEAD_DIM] for each in (k, v)]
    return torch.cat(rows)


def make_moments(model: Qwen3ForCausalLM) -> dict[str, dict[str, Tensor]]:
    """AdamW's state, random, by Hugging Face name."""
    torch.manual_seed(9)
    return {
        name: {"step": torch.tensor(7.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for name, p in model.named_parameters()
    }


def titan_state(
    model: Qwen3ForCausalLM,
    *,
    older: bool = False,
    moments: dict[str, dict[str, Tensor]] | None = None,
    fused: bool = True,
) -> dict[str, Any]:
    """What TorchTitan would save; with `moments`, a full checkpoint of step 7."""
    tied = model.config.tie_word_embeddings
    weights = dict(model.named_parameters())
    names = titan_names(tied=tied, older=older)
    state: dict[str, Any] = {theirs: weights[ours].detach().clone() for ours, theirs in names.items()}
    if tied:  # stored twice
        state["output.weight" if older else "lm_head.weight"] = state["tok_embeddings.weight"].clone()
    if moments is None:
        return state
    entries = {theirs: moments[ours] for ours, theirs in names.items()}
    if fused:
        for layer in range(LAYERS):
            attention = f"layers.{layer}.attention.qkv_linear"
            parts = [entries.pop(f"{attention}.w{letter}.weight") for letter in "qkv"]
            together = {key: fuse(*(part[key] for part in parts)) for key in ("exp_avg", "exp_avg_sq")}
            entries[f"{attention}.wqkv.weight"] = {"step": parts[0]["step"], **together}
    for name, values in entries.items():
        state |= {f"optimizer.state.{name}.{key}": value for key, value in values.items()}
        group = {"lr": 2e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False}
        state |= {f"optimizer.param_groups.{name}.{key}": value for key, value in group.items()}
    counts = {"step": 7, "ntokens_seen": 1000}
    state |= {f"train_state.{key}": torch.tensor(value) if older else value for key, value in counts.items()}
    state |= {f"dataloader.dp_rank_{rank}": b"\x80\x04N." for rank in range(2)}
    return {**state, "dataloader.world_size": 2, "lr_scheduler.last_epoch": 7}


class Titan:
    """Makes models, and checkpoints as TorchTitan would write them."""

    model = staticmethod(make_model)
    moments = staticmethod(make_moments)
    state = staticmethod(titan_state)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], name: str = "step-7") -> Path:
        """Write a distributed checkpoint; returns its folder."""
        dcp.save(state, checkpoint_id=self.folder / name, no_dist=True)
        return self.folder / name


@pytest.fixture
def titan(tmp_path: Path) -> Titan:
    return Titan(tmp_path)

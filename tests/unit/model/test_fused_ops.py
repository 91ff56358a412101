"""Fused pieces compute what transformers computes, and leave the model as it is to everyone else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from molgen_pretrain.model.document_mask import document_arguments
from molgen_pretrain.model.fused_ops import fuse_ops, rms_norm, rotate
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize

ARCH = Qwen3Arch(
    vocab_size=64, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96,
)  # fmt: skip


def build(*, fused: bool) -> Qwen3ForPretraining:
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0), fused_ops=False)
    if fused:
        fuse_ops(model)
    materialize(model, device=torch.device("cpu"), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # weights of 1 would hide a weight in the wrong place
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            elif "proj" in name:
                parameter *= 5
    return model


def gradients(model: nn.Module, *, bfloat16: bool) -> Tensor:
    """All of them as one vector."""
    tokens = torch.randint(0, ARCH.vocab_size, (2, 150), generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = model(tokens, tokens.roll(-1, 1)).total
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiling", [False, True])
def test_norms_and_rotations_are_those_of_transformers(dtype: torch.dtype, compiling: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    tolerance = {"rtol": 2e-6, "atol": 2e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(2, 3, 7, 16, generator=generator).to(dtype).requires_grad_()
    norm = Qwen3RMSNorm(16, eps=1e-3)
    nn.init.normal_(norm.weight, generator=generator)
    angles = torch.randn(2, 7, 8, generator=generator).repeat(1, 1, 2)

    def run(normed: Tensor, turned: Tensor) -> list[Tensor]:
        of_normed = torch.autograd.grad(normed.sin().sum(), [heads, norm.weight])
        return [normed, turned, *of_normed, *torch.autograd.grad(turned.sin().sum(), [heads])]

    expected = run(norm(heads), apply_rotary_pos_emb(heads, heads, angles.cos(), angles.sin())[0])
    found = run(rms_norm(heads, norm.weight, 1e-3), rotate(heads, angles.cos(), angles.sin()))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, **tolerance)


def test_float32_gradients_stay_and_bfloat16_ones_get_no_worse() -> None:
    exact = gradients(build(fused=False), bfloat16=False)

    def error(*, fused: bool, bfloat16: bool) -> float:
        return float((gradients(build(fused=fused), bfloat16=bfloat16) - exact).norm() / exact.norm())

    assert error(fused=True, bfloat16=False) < 1e-5
    assert error(fused=True, bfloat16=True) < 1.1 * error(fused=False, bfloat16=True)


def test_names_and_exports_are_those_of_a_plain_model(tmp_path: Path) -> None:
    plain, fused = build(fused=False), build(fused=True)
    assert list(fused.state_dict()) == list(plain.state_dict())
    export_hf(fused, tmp_path, tmp_path / "hf", is_writer=True)
    loaded = Qwen3ForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokens = torch.arange(40).reshape(2, 20)
    decoded = fused.model(input_ids=tokens, attention_mask={"full_attention": None}).last_hidden_state
    torch.testing.assert_close(fused.lm_head(decoded), loaded(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_other_devices_run_fits_together(dtype: torch.dtype) -> None:
    # No GPU, but its branches: shapes and dtypes through norms, rotations, the varlen operator and their backwards.
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0), document_mask=True, fused_ops=True).to(dtype)
    places = torch.zeros(2, 24, dtype=torch.int64, device="meta")
    borders = torch.zeros(7, dtype=torch.int32, device="meta")
    arguments = document_arguments(places, unit_borders=borders)
    decoded = model.model(input_ids=places, use_cache=False, **arguments).last_hidden_state
    assert decoded.shape == (2, 24, ARCH.hidden_size)
    assert decoded.dtype is dtype
    decoded.sum().backward()
    missing = [name for name, parameter in model.model.named_parameters() if parameter.grad is None]
    assert missing == []

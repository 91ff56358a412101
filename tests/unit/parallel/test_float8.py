"""Float8 layers: who may have them, and that they train as the others do, emulated on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize
from molgen_pretrain.parallel import float8
from molgen_pretrain.parallel.degrees import resolve_degrees
from molgen_pretrain.parallel.layout import Layout, build_layout

ARCH = Qwen3Arch(
    vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    intermediate_size=40,
)  # fmt: skip
TOKENS = torch.arange(48).reshape(2, 24)


def layout() -> Layout:
    degrees = resolve_degrees(replicate=1, shard=1, tensor=1, world_size=1)
    return build_layout(degrees, rank=0, device=torch.device("cpu"))


def build(recipe: float8.Float8 = "none") -> Qwen3ForPretraining:
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0))
    if recipe != "none":
        float8.convert_to_float8(model.model.layers, recipe, layout())
    materialize(model, device=torch.device("cpu"), seed=0)
    return model


def losses(model: Qwen3ForPretraining) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(12):
        loss = model(TOKENS, TOKENS.roll(-1, 1)).total / TOKENS.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def test_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.float8=rowwise: .*cpu.*none"):
        build("rowwise")


def test_an_older_gpu_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    with pytest.raises(UserError, match=r"A100 \(compute capability 8\.0\).*8\.9.*none"):
        float8.convert_to_float8([], "tensorwise", replace(layout(), device=torch.device("cuda", 0)))


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_emulated_float8_trains_close_to_float32_under_the_same_names(recipe: float8.Float8, monkeypatch) -> None:
    torchao = pytest.importorskip("torchao.float8", reason="needs torchao, the extra float8")
    given = torchao.Float8LinearConfig.from_recipe_name
    emulated = staticmethod(lambda name: replace(given(name), emulate=True))
    monkeypatch.setattr(torchao.Float8LinearConfig, "from_recipe_name", emulated)
    monkeypatch.setattr(float8, "require_float8", lambda *_: None)
    model, plain = build(recipe), build()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    block = model.model.layers[0]
    assert "Float8" in type(block.self_attn.q_proj).__name__
    assert type(block.mlp.gate_proj) is torch.nn.Linear  # 40 is not a multiple of 16
    assert type(model.lm_head) is torch.nn.Linear
    found, expected = losses(model), losses(plain)
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)
    assert found[-1] < 0.9 * found[0]

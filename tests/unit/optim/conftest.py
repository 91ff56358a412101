"""A Qwen3 of a few thousand weights, and gradients that depend on the step alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    def build(*, layers: int = 2, tied: bool = True) -> nn.Module:
        arch = Qwen3Arch(
            vocab_size=37, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, intermediate_size=24, tie_word_embeddings=tied,
        )  # fmt: skip
        model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0))
        materialize(model, device=torch.device("cpu"), seed=0)
        return model

    return build


@pytest.fixture
def set_gradients() -> Callable[[nn.Module, int], None]:
    def fill(model: nn.Module, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    return fill

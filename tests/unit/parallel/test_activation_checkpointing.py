"""What is computed again, and that nobody outside notices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize
from molgen_pretrain.parallel.activation_checkpointing import checkpoint_activations

ARCH = Qwen3Arch(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    intermediate_size=24,
)  # fmt: skip


def build(kind: str) -> Qwen3ForPretraining:
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0))
    for block in model.model.layers:
        checkpoint_activations(block, kind)
    materialize(model, device=torch.device("cpu"), seed=0)
    return model


def flops_of_backward(model: Qwen3ForPretraining) -> int:
    """Of matmuls and attention, in a forward and backward pass, without those of the forward."""
    tokens = torch.arange(24).reshape(2, 12)
    with FlopCounterMode(display=False) as forward:
        loss = model(tokens, tokens).total
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward.get_total_flops() > 0
    return backward.get_total_flops()


def test_only_full_checkpointing_computes_matmuls_again() -> None:
    none, selective, full = (flops_of_backward(build(kind)) for kind in ("none", "selective", "full"))
    assert selective == none
    assert full > 1.3 * none


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_names_gradients_and_evaluation_stay_the_same(kind: str) -> None:
    plain, checkpointed = build("none"), build(kind)
    tokens = torch.arange(24).reshape(2, 12)
    for model in (plain, checkpointed):
        model(tokens, tokens).total.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in checkpointed.named_parameters():
        assert torch.equal(parameter.grad, gradients.pop(name))
    assert not gradients
    with torch.no_grad():
        assert torch.equal(checkpointed.eval()(tokens, tokens).total, plain.eval()(tokens, tokens).total)
    assert list(checkpointed.state_dict()) == list(plain.state_dict())

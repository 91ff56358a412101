"""The model against transformers' own, and what must hold of its weights, loss and FLOPs."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, count_parameters, materialize

TINY = Qwen3Arch(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_position_embeddings=128,
)
CPU = torch.device("cpu")


def build(arch: Qwen3Arch = TINY, *, seed: int = 1, loss_chunk_tokens: int = 0) -> Qwen3ForPretraining:
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0), loss_chunk_tokens=loss_chunk_tokens)
    materialize(model, device=CPU, seed=seed)
    return model


def batch(arch: Qwen3Arch = TINY, *, seq_len: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(arch.vocab_size, (3, seq_len), generator=generator)
    labels = torch.cat([input_ids[:, 1:], torch.full((3, 1), IGNORE_INDEX)], dim=1)
    labels[1, 10:] = IGNORE_INDEX
    return input_ids, labels


def reference(model: Qwen3ForPretraining) -> Qwen3ForCausalLM:
    """transformers' own class, built the ordinary way, with the same weights."""
    plain = Qwen3ForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.model.embed_tokens.padding_idx = None  # separators are trained as input too
    return plain.train()


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_transformers(tied: bool) -> None:
    model = build(dataclasses.replace(TINY, tie_word_embeddings=tied))
    plain = reference(model)
    input_ids, labels = batch()
    loss_sum = model(input_ids, labels).total
    logits = plain(input_ids=input_ids).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(loss_sum, expected)
    loss_sum.backward()
    expected.backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_separators_which_are_padding_tokens_are_trained_as_input() -> None:
    model = build(dataclasses.replace(TINY, tie_word_embeddings=False))
    input_ids, labels = batch()
    input_ids[:, 3] = model.config.pad_token_id
    model(input_ids, labels).total.backward()
    assert model.model.embed_tokens.weight.grad[model.config.pad_token_id].norm() > 0


@pytest.mark.parametrize("chunk_tokens", [1, 7, 24, 72, 1000])
def test_chunked_loss_equals_the_plain_one(chunk_tokens: int) -> None:
    input_ids, labels = batch()
    plain, chunked = build(), build(loss_chunk_tokens=chunk_tokens)
    loss, chunked_loss = plain(input_ids, labels).total, chunked(input_ids, labels).total
    torch.testing.assert_close(chunked_loss, loss)
    loss.backward()
    chunked_loss.backward()
    for parameter, other in zip(chunked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_a_batch_without_labels_has_no_loss() -> None:
    input_ids, labels = batch()
    loss = build()(input_ids, torch.full_like(labels, IGNORE_INDEX)).total
    assert loss == 0


def test_weights_depend_on_the_seed_and_nothing_else() -> None:
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    torch.manual_seed(99)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (a.ndim == 1), name


def test_initial_weights_are_normal_and_norms_are_one() -> None:
    model = build(dataclasses.replace(TINY, vocab_size=4096, hidden_size=128))
    embedding = model.model.embed_tokens.weight
    assert embedding.mean().abs() < 1e-3
    assert embedding.std().item() == pytest.approx(0.02, rel=0.01)
    assert all((p == 1).all() for p in model.parameters() if p.ndim == 1)


def test_the_head_is_tied_and_counted_once() -> None:
    tied, untied = build(), build(dataclasses.replace(TINY, tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert count_parameters(untied) - count_parameters(tied) == TINY.vocab_size * TINY.hidden_size


def test_rotary_buffers_survive_the_meta_device() -> None:
    model = build()
    fresh = Qwen3ForCausalLM(model.config).model.rotary_emb
    for name, buffer in fresh.named_buffers():
        assert torch.equal(model.model.rotary_emb.get_buffer(name), buffer), name


def test_attention_is_causal() -> None:
    model = reference(build()).eval()
    input_ids, _ = batch()
    changed = input_ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % TINY.vocab_size
    with torch.no_grad():
        a, b = model(input_ids=input_ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(a[:, :12], b[:, :12])
    assert not torch.allclose(a[:, 12:], b[:, 12:])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_size", ["4GB", "10KB"])
def test_export_loads_in_transformers_bit_for_bit(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    model = build(dataclasses.replace(TINY, tie_word_embeddings=tied))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    target = tmp_path / "hf" / "step-00000001"
    for _ in range(2):  # an existing export is replaced
        export_hf(model, tokenizer, target, is_writer=True, max_shard_size=max_shard_size)
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert type(loaded) is Qwen3ForCausalLM
    for (name, a), (_, b) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    input_ids, _ = batch()
    assert torch.equal(loaded(input_ids=input_ids).logits, reference(model).eval()(input_ids=input_ids).logits)
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert (target / "tokenizer.json").read_text() == "{}"
    assert [p.name for p in target.parent.iterdir()] == [target.name]

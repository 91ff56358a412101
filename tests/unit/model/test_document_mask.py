"""Units of a packed row train as if each were alone, and the loss falls apart into classes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from molgen_pretrain.model import document_mask
from molgen_pretrain.model.document_mask import DOCUMENT_ATTENTION, block_causal_mask, document_arguments
from molgen_pretrain.model.hf_io import export_hf
from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize

ARCH = Qwen3Arch(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_position_embeddings=128,
)
LENGTHS = [[9, 14, 1, 17], [40], [5, 6, 22]]  # units of each row, the rest of its 44 places is padding
SEQ_LEN = 44
UNITS = sum(map(len, LENGTHS))
BORDERS = [0, 9, 23, 24, 41, 44, 84, 88, 93, 99, 121, 132]  # padding counts as units


def build(*, chunk_tokens: int = 0, document_mask: bool = True, classes: int = 0) -> Qwen3ForPretraining:
    config = ARCH.hf_config(eos_token_id=0, pad_token_id=0)
    model = build_on_meta(config, loss_chunk_tokens=chunk_tokens, document_mask=document_mask, loss_classes=classes)
    materialize(model, device=torch.device("cpu"), seed=1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight *= 20  # so that it matters what is attended to
    return model


def units() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randint(1, ARCH.vocab_size, (n,), generator=generator) for n in row] for row in LENGTHS]


def packed(rows: list[list[Tensor]]) -> dict[str, Tensor]:
    """A batch of packed rows; the class of a token is the number of its unit, and padding says 0."""
    shape = (len(rows), SEQ_LEN)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORE_INDEX),
        "position_ids": torch.zeros(shape, dtype=torch.int64),
        "token_classes": torch.zeros(shape, dtype=torch.uint8),
    }
    number = 0
    for row, row_units in enumerate(rows):
        place = 0
        for unit in row_units:
            part = (row, slice(place, place + len(unit)))
            batch["input_ids"][part] = unit
            batch["labels"][part] = alone(unit)[1]
            batch["position_ids"][part] = torch.arange(len(unit))
            batch["token_classes"][part] = number
            place, number = place + len(unit), number + 1
        batch["position_ids"][row, place:] = torch.arange(SEQ_LEN - place)
    return batch


def alone(unit: Tensor) -> tuple[Tensor, Tensor]:
    return unit, torch.cat([unit[1:], torch.tensor([IGNORE_INDEX])])


def gradients(model: Qwen3ForPretraining) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def unit_losses(model: Qwen3ForPretraining) -> Tensor:
    """Loss sums of the units, each run by itself through the plain model; their gradient is left in place."""
    losses = []
    for unit in (unit for row in units() for unit in row):
        loss = model(*(t.unsqueeze(0) for t in alone(unit))).total
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("chunk_tokens", [0, 16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_units_have_the_loss_and_gradient_of_units_alone(chunk_tokens: int, checkpointing: bool) -> None:
    plain = build(document_mask=False)
    expected, expected_gradients = unit_losses(plain), gradients(plain)
    model = build(chunk_tokens=chunk_tokens, classes=UNITS)
    if checkpointing:
        for layer in model.model.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    sums = model(**packed(units()))
    sums.total.backward()
    torch.testing.assert_close(sums.total, expected.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(sums.by_class, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(model).items():
        difference = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert difference < 1e-4, name


def test_a_unit_is_seen_by_no_other() -> None:
    model = build(classes=UNITS)
    batch = packed(units())
    changed_units = units()
    changed_units[0][1] = (changed_units[0][1] + 7) % ARCH.vocab_size  # unit 1; 2 and 3 come after it in its row
    changed = packed(changed_units)
    others = torch.arange(UNITS) != 1
    with torch.no_grad():
        before, after = model(**batch).by_class, model(**changed).by_class
        assert torch.equal(before[others], after[others])
        assert before[1] != after[1]
        unmasked = [model(**{**b, "position_ids": None}).by_class for b in (batch, changed)]
    differs = (unmasked[0] - unmasked[1]).abs() > 1e-3
    assert differs.tolist() == [number in (1, 3) for number in range(UNITS)]  # unit 2 has but one token, no label


def test_the_mask_is_that_of_a_loop_over_pairs() -> None:
    position_ids = torch.tensor([[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]])
    mask = block_causal_mask(position_ids)
    assert mask.shape == (2, 1, 6, 6)
    for row in range(2):
        for query in range(6):
            begin = query - int(position_ids[row, query])
            assert mask[row, 0, query].tolist() == [begin <= key <= query for key in range(6)]


def varlen_by_loop(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, _: Tensor, longest: int, __: int, **options: object
) -> Tensor:
    """What flash attention over varying lengths computes, one unit after the other."""
    assert options["window_size"] == (-1, 0)
    assert borders.dtype == torch.int32
    assert borders.diff().max() <= longest
    assert query.dtype == key.dtype == value.dtype
    parts = []
    for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        if begin == end:
            continue
        q, k, v = (t[begin:end].transpose(0, 1) for t in (query, key, value))
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=options["scale"], enable_gqa=True))
    return torch.cat(parts, dim=1).transpose(0, 1)


def test_the_kernel_for_varying_lengths_is_given_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    # It needs a GPU, where tests/gpu runs it; here a loop stands in for it.
    batch, model = packed(units()), build()
    masked = model(batch["input_ids"], batch["labels"], batch["position_ids"]).total
    masked.backward()
    expected = gradients(model)
    monkeypatch.setattr(document_mask, "varlen_attn", varlen_by_loop)
    monkeypatch.setattr("molgen_pretrain.model.qwen3.has_varlen_kernel", lambda *_: True)
    borders = torch.tensor(BORDERS + BORDERS[-1:] * 3, dtype=torch.int32)  # three units of length 0 at the end
    sums = model(batch["input_ids"], batch["labels"], batch["position_ids"], unit_borders=borders)
    sums.total.backward()
    torch.testing.assert_close(sums.total, masked)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_blocks_compile_in_one_graph_for_any_number_of_units() -> None:
    model, compiled = build(), build()
    for layer in compiled.model.layers:
        layer.compile(fullgraph=True, backend="eager")
    for rows in (units(), [row[:1] for row in units()]):
        batch = packed(rows)
        arguments = batch["input_ids"], batch["labels"], batch["position_ids"]
        torch.testing.assert_close(compiled(*arguments).total, model(*arguments).total)


@pytest.mark.parametrize("chunk_tokens", [0, 16, 50])
def test_classes_add_up_to_the_total_and_change_no_gradient(chunk_tokens: int) -> None:
    batch = packed(units())
    batch["token_classes"] = torch.randint(4, batch["labels"].shape, dtype=torch.uint8)
    plain, model = build(chunk_tokens=chunk_tokens), build(chunk_tokens=chunk_tokens, classes=5)
    without = plain(batch["input_ids"], batch["labels"], batch["position_ids"])
    sums = model(**batch)
    assert without.by_class is None
    assert not sums.by_class.requires_grad
    kept = sums.by_class.clone()
    without.total.backward()
    sums.total.backward()
    assert torch.equal(sums.by_class, kept)
    torch.testing.assert_close(sums.total, without.total)
    torch.testing.assert_close(sums.by_class.sum(), sums.total.detach())
    expected = gradients(plain)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, expected[name]), name

    hidden = model.model(input_ids=batch["input_ids"], **document_arguments(batch["position_ids"], unit_borders=None))
    log_probabilities = model.lm_head(hidden.last_hidden_state).log_softmax(-1)
    for number in range(5):
        trained = (batch["labels"] != IGNORE_INDEX) & (batch["token_classes"] == number)
        nll = -log_probabilities[trained].gather(1, batch["labels"][trained].unsqueeze(1)).sum()
        torch.testing.assert_close(sums.by_class[number], nll.detach())
    assert sums.by_class[4] == 0


def test_a_model_built_for_neither_refuses_both() -> None:
    batch, model = packed(units()), build(document_mask=False)
    with pytest.raises(ValueError, match="document_mask"):
        model(batch["input_ids"], batch["labels"], position_ids=batch["position_ids"])
    with pytest.raises(ValueError, match="loss_classes"):
        model(batch["input_ids"], batch["labels"], token_classes=batch["token_classes"])


def test_an_export_is_a_plain_qwen3(tmp_path: Path) -> None:
    model, target = build(), tmp_path / "hf"
    export_hf(model, tmp_path, target, is_writer=True)
    assert DOCUMENT_ATTENTION not in (target / "config.json").read_text()
    plain = build(document_mask=False)
    export_hf(plain, tmp_path, tmp_path / "plain", is_writer=True)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (target, tmp_path / "plain")]
    assert configs[0] == configs[1]
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert type(loaded) is Qwen3ForCausalLM
    assert loaded.config._attn_implementation == "sdpa"
    unit, labels = (t.unsqueeze(0) for t in alone(units()[1][0]))
    logits = loaded(input_ids=unit).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(loss, model(unit, labels).total)

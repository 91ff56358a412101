"""The document mask on a CUDA device, where a flash kernel takes the borders of units; skipped where there is none."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.model.qwen3 import Qwen3Arch, Qwen3ForPretraining, build_on_meta, materialize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ARCH = Qwen3Arch(
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    intermediate_size=512,
)
CUDA = torch.device("cuda", 0)
LENGTHS = [[300, 130, 1, 400, 97], [900], [33, 500, 460]]  # units of each row; the rest is padding
SEQ_LEN = 1000
UNITS = sum(map(len, LENGTHS))
BORDERS = 16  # more than there are: the last units have no length


def build() -> Qwen3ForPretraining:
    config = ARCH.hf_config(eos_token_id=0, pad_token_id=0)
    model = build_on_meta(config, document_mask=True, loss_classes=UNITS)
    materialize(model, device=CUDA, seed=1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight *= 8  # so that it matters what is attended to
    return model


def with_bfloat16_weights() -> Qwen3ForPretraining:
    model = build()
    for parameter in model.parameters():  # and no buffer: rotary frequencies stay float32, as under FSDP2
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def packed(*, changed_unit: int | None = None) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """A batch of packed rows, whose token classes are the numbers of units, and the units' inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.zeros(len(LENGTHS), SEQ_LEN, dtype=torch.int64) for name in ("input_ids", "position_ids")}
    batch["labels"] = torch.full((len(LENGTHS), SEQ_LEN), IGNORE_INDEX)
    batch["token_classes"] = torch.zeros(len(LENGTHS), SEQ_LEN, dtype=torch.uint8)
    alone = []
    for row, lengths in enumerate(LENGTHS):
        place = 0
        for length in lengths:
            unit = torch.randint(1, ARCH.vocab_size, (length,), generator=generator)
            if len(alone) == changed_unit:
                unit = (unit + 7) % ARCH.vocab_size
            labels = torch.cat([unit[1:], torch.tensor([IGNORE_INDEX])])
            part = (row, slice(place, place + length))
            batch["input_ids"][part], batch["labels"][part] = unit, labels
            batch["position_ids"][part] = torch.arange(length)
            batch["token_classes"][part] = len(alone)
            alone.append((unit.unsqueeze(0).to(CUDA), labels.unsqueeze(0).to(CUDA)))
            place += length
        batch["position_ids"][row, place:] = torch.arange(SEQ_LEN - place)
    begins = (batch["position_ids"].flatten() == 0).nonzero().flatten()
    batch["unit_borders"] = F.pad(begins, (0, BORDERS - len(begins)), value=batch["input_ids"].numel()).int()
    return {name: tensor.to(CUDA) for name, tensor in batch.items()}, alone


def losses_and_gradients(model: Qwen3ForPretraining, *, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss sums of the units in a packed batch, and the gradient."""
    with torch.autocast("cuda", dtype=torch.bfloat16) if autocast else nullcontext():
        sums = model(**packed()[0])
    model.zero_grad()
    sums.total.backward()
    assert sums.by_class is not None
    return sums.by_class, {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of any parameter's gradient."""
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per call of the kernel for varying lengths: how many units it was given, those of no length too."""
    from molgen_pretrain.model import document_mask

    made: list[int] = []
    kernel = document_mask.varlen_attn

    def counting(*arguments, **options):
        made.append(arguments[3].numel() - 1)
        return kernel(*arguments, **options)

    monkeypatch.setattr(document_mask, "varlen_attn", counting)
    return made


def test_float32_takes_the_mask_and_equals_units_alone(calls: list[int]) -> None:
    model = build()
    found, gradients = losses_and_gradients(model)
    assert calls == []
    model.zero_grad()
    alone = [model(*unit).total for unit in packed()[1]]
    torch.stack(alone).sum().backward()
    torch.testing.assert_close(found, torch.stack(alone).detach(), rtol=1e-5, atol=1e-3)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert worst(gradients, expected) < 1e-4


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16_weights"])
def test_bfloat16_takes_the_kernel_and_equals_the_mask(
    calls: list[int], monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    exact, _ = losses_and_gradients(build())
    model = build() if autocast else with_bfloat16_weights()
    found, gradients = losses_and_gradients(model, autocast=autocast)
    assert calls == [BORDERS - 1] * ARCH.num_hidden_layers
    monkeypatch.setattr("molgen_pretrain.model.qwen3.has_varlen_kernel", lambda *_: False)
    masked, masked_gradients = losses_and_gradients(model, autocast=autocast)
    assert len(calls) == ARCH.num_hidden_layers
    torch.testing.assert_close(found, masked, rtol=3e-4, atol=0.05)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0.05)
    assert worst(gradients, masked_gradients) < 3e-2


def test_a_unit_is_seen_by_no_other_in_bfloat16() -> None:
    model = with_bfloat16_weights()
    others = torch.arange(UNITS, device=CUDA) != 3
    batch, changed = packed()[0], packed(changed_unit=3)[0]
    with torch.no_grad():
        before, after = model(**batch).by_class, model(**changed).by_class
        plain = [model(**{**b, "position_ids": None}).by_class for b in (batch, changed)]
    assert before is not None
    torch.testing.assert_close(before[others], after[others], rtol=1e-6, atol=1e-4)
    assert (before - after)[3].abs() > 1
    assert (plain[0] - plain[1])[4].abs() > 1e-2  # without the mask the next unit of the row notices


def test_compiled_blocks_and_recomputation_change_nothing() -> None:
    model = with_bfloat16_weights()
    expected, gradients = losses_and_gradients(model)
    compiled = copy.deepcopy(model)
    for layer in compiled.model.layers:
        layer.compile(fullgraph=True)
    found, compiled_gradients = losses_and_gradients(compiled)
    torch.testing.assert_close(found, expected, rtol=3e-4, atol=0.05)
    assert worst(compiled_gradients, gradients) < 3e-2
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    found, again = losses_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    assert worst(again, gradients) < 1e-2

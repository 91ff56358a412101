"""A whole training step at full size on fake tensors, which have shapes and no data: what would fail, fails here."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.config.preflight import preflight
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.validate import parallel_degrees, validate
from molgen_pretrain.model.qwen3 import Qwen3ForPretraining
from molgen_pretrain.training.build import build_meta_model


def fake_step_of_ours(cfg: RunConfig) -> int:
    """Check the config, then take a step of its model. Returns the number of parameters. Raises what goes wrong."""
    validate(cfg, 1)
    model, _ = build_meta_model(cfg, preflight(cfg), parallel_degrees(cfg, 1))
    return _fake_step(model, cfg.training.local_batch_size, cfg.training.seq_len)


def fake_step_of_transformers(sizes: dict[str, object], batch: int, seq_len: int) -> int:
    """The same for transformers' own model and loss."""
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    return _fake_step(model, batch, seq_len, use_cache=False)


def _fake_step(model: nn.Module, batch: int, seq_len: int, **arguments: bool) -> int:
    """Forward and backward with bfloat16 weights, as FSDP2 hands them to a forward, clipping and AdamW."""
    # A torch without CUDA cannot even pretend to compute on it, but on a device that is no CPU either.
    device = "cuda" if torch.cuda.is_available() else "meta"
    with FakeTensorMode():

        def on_device(tensor: Tensor, dtype: torch.dtype, **options: bool) -> Tensor:
            return torch.empty(tensor.shape, dtype=dtype, device=device, **options)

        parameters = {n: on_device(p, torch.bfloat16, requires_grad=True) for n, p in model.named_parameters()}
        buffers = {name: on_device(buffer, buffer.dtype) for name, buffer in model.named_buffers()}
        ids = torch.zeros(batch, seq_len, dtype=torch.int64, device=device)
        tensors = {"input_ids": ids, "labels": ids}
        found = functional_call(model, (parameters, buffers), (), {**tensors, **arguments})
        loss = found.total if isinstance(model, Qwen3ForPretraining) else found.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        torch.optim.AdamW(parameters.values(), fused=device == "cuda").step()
    return sum(p.numel() for p in parameters.values())

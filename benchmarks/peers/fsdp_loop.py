"""A plain loop over transformers' model with FSDP2, in a process of its own: `fsdp_loop.py SPEC`, a JSON object.

What the tutorials of torch and transformers put together: each block sharded, bfloat16 weights with float32
gradients and optimizer, the model's own loss, fused AdamW, clipping.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from hf_model import new_model, packed_sequences, per_step
from step_clock import StepClock, print_result
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.data import DataLoader


def sharded_model(spec: dict[str, Any]) -> torch.nn.Module:
    model = new_model(spec["sizes"], spec["device"])
    dtype = torch.bfloat16 if spec["dtype"] == "bfloat16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.model.layers:
        if spec["compile"]:
            block.compile()
        fully_shard(block, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def train(spec: dict[str, Any], clock: StepClock) -> dict[str, Any]:
    device = torch.device(spec["device"])
    model = sharded_model(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec["lr"], betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = list(packed_sequences(spec["packed"]))
    loader = DataLoader(rows, batch_size=spec["batch"], pin_memory=device.type == "cuda")  # type: ignore[arg-type]
    loss = torch.zeros(())
    for _, batch in zip(range(spec["steps"]), loader, strict=False):
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        loss = model(**on_device, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    tokens = [int((row["labels"] != -100).sum()) for row in rows]
    return {**clock.result(per_step(tokens, spec)), "loss": float(loss.detach())}


def main() -> None:
    spec = json.loads(sys.argv[1])
    backend = "nccl" if spec["device"] == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    print_result(train(spec, StepClock(spec["device"], spec["every"])))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

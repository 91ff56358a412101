"""TorchTitan 0.3.0's own trainer on a CPU, in a process of its own: a few things must be replaced before its import.

    torchrun ... titan_process.py '{"dump": DIR, "steps": 3, ...}'

It trains a tiny Qwen3 as `OPTIONS` of test_titan.py say, writes a full checkpoint after every step, and the logits of
the last weights to DIR/logits.safetensors.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch._utils
import torch.distributed as dist

# It knows GPUs only, and asks when it is imported.
torch._utils._get_available_device_type = lambda: "cpu"

from safetensors.torch import save_file  # noqa: E402
from torch.distributed.fsdp import FSDPModule  # noqa: E402
from torch.utils.data import IterableDataset  # noqa: E402
from torchtitan.components import checkpoint, metrics  # noqa: E402
from torchtitan.components.dataloader import ParallelAwareDataloader  # noqa: E402
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402
from torchtitan.config import TrainingConfig  # noqa: E402
from torchtitan.distributed import utils as dist_utils  # noqa: E402
from torchtitan.models import qwen3  # noqa: E402
from torchtitan.models.common.attention import ScaledDotProductAttention  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402


class NoMemoryMonitor:
    device_name = "cpu"

    def get_peak_stats(self) -> metrics.DeviceMemStats:
        return metrics.DeviceMemStats(*([0] * len(metrics.DeviceMemStats._fields)))

    def reset_peak_stats(self) -> None:
        pass


class Sequences(IterableDataset):
    """Given sequences, the same on every rank; its state is the number of the next."""

    def __init__(self, sequences: list[list[int]], first: int) -> None:
        self.sequences = torch.tensor(sequences)
        self.next = first

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while self.next < len(self.sequences):
            self.next += 1
            yield {"input": self.sequences[self.next - 1, :-1]}, self.sequences[self.next - 1, 1:]

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class SequencesLoader(ParallelAwareDataloader):
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        sequences: list[list[int]]
        first: int

    def __init__(self, config: Config, **runtime: Any) -> None:
        super().__init__(
            Sequences(config.sequences, config.first),
            dp_rank=runtime["dp_rank"],
            dp_world_size=runtime["dp_world_size"],
            batch_size=runtime["local_batch_size"],
        )


def model_spec(options: dict[str, Any]) -> Any:
    dim, rows = options["sizes"]["dim"], options["vocab_size"]
    spec = qwen3.model_registry("debugmodel")
    model = spec.model
    model.vocab_size, model.dim, model.enable_weight_tying = rows, dim, options["tied"]
    model.norm.normalized_shape = dim
    init = model.tok_embeddings.param_init if options["tied"] else model.lm_head.param_init
    model.tok_embeddings = dataclasses.replace(
        model.tok_embeddings, num_embeddings=rows, embedding_dim=dim, param_init=init
    )
    model.lm_head = dataclasses.replace(model.lm_head, in_features=dim, out_features=rows)
    rope = qwen3.CosSinRoPE.Config(dim=options["sizes"]["head_dim"], max_seq_len=4096, theta=1e6)
    model.layers = qwen3._build_qwen3_layers(
        **options["sizes"], fuse_qkv=options["fused"], attn_backend="flex", rope=rope
    )
    for layer in model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()  # flex has no backward on a CPU
    return spec


def trainer_config(options: dict[str, Any]) -> Trainer.Config:
    config = Trainer.Config(
        model_spec=model_spec(options),
        hf_assets_path=options["tokenizer"],
        dump_folder=options["dump"],
        dataloader=SequencesLoader.Config(sequences=options["sequences"], first=options["first"]),
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=options["lr"]),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=0, decay_ratio=0.0),
        training=TrainingConfig(
            local_batch_size=options["batch"],
            seq_len=len(options["sequences"][0]) - 1,
            steps=options["steps"],
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
        ),
        checkpoint=checkpoint.CheckpointManager.Config(
            enable=True, interval=1, last_save_model_only=False, exclude_from_loading=["dataloader"]
        ),
        activation_checkpoint=None,
    )
    config.parallelism.spmd_backend = "partial_dtensor"
    return config


def main() -> None:
    options = json.loads(sys.argv[1])
    metrics.build_device_memory_monitor = NoMemoryMonitor
    dist_utils.set_pg_timeouts = lambda **_: None
    trainer = trainer_config(options).build()
    for module in trainer.model_parts[0].modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply as it adds
    trainer.train()
    with torch.no_grad():
        logits = trainer.model_parts[0](torch.tensor([options["sequences"][0][:-1]]), None, None)
    if dist.get_rank() == 0:
        save_file({"logits": logits.contiguous()}, f"{options['dump']}/logits.safetensors")
    trainer.close()
    dist.barrier()


if __name__ == "__main__":
    main()

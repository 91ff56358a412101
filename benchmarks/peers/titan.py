"""TorchTitan 0.3.0's own trainer on the same model and data on a CPU, in a process of its own: `titan.py SPEC`.

SPEC is a JSON object. A few things must be replaced before its import, since it knows GPUs only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import torch._utils

torch._utils._get_available_device_type = lambda: "cpu"  # asked for when it is imported

from safetensors.torch import load_file  # noqa: E402
from step_clock import StepClock, print_result  # noqa: E402
from torch import Tensor  # noqa: E402
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
    def __init__(self, path: str) -> None:
        self.data = load_file(path)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for ids, labels in zip(self.data["input_ids"], self.data["labels"], strict=True):
            yield {"input": ids}, labels

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


class SequencesLoader(ParallelAwareDataloader):
    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        path: str

    def __init__(self, config: Config, **runtime: Any) -> None:
        super().__init__(
            Sequences(config.path),
            dp_rank=runtime["dp_rank"],
            dp_world_size=runtime["dp_world_size"],
            batch_size=runtime["local_batch_size"],
        )


class TimedTrainer(Trainer):
    """Its own loop; the clock alone is added."""

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        pass

    clock: StepClock

    def train_step(self, data_iterator: Iterator[tuple[dict[str, Tensor], Tensor]]) -> None:
        super().train_step(data_iterator)
        self.clock.tick()


def model_spec(sizes: dict[str, Any], seq_len: int) -> Any:
    dim, rows = sizes["hidden_size"], sizes["vocab_size"]
    spec = qwen3.model_registry("debugmodel")
    model = spec.model
    model.vocab_size, model.dim, model.enable_weight_tying = rows, dim, True
    model.norm.normalized_shape = dim
    model.tok_embeddings = dataclasses.replace(model.tok_embeddings, num_embeddings=rows, embedding_dim=dim)
    model.lm_head = dataclasses.replace(model.lm_head, in_features=dim, out_features=rows)
    theta = sizes["rope_parameters"]["rope_theta"]
    rope = qwen3.CosSinRoPE.Config(dim=sizes["head_dim"], max_seq_len=max(seq_len, 4096), theta=theta)
    model.layers = qwen3._build_qwen3_layers(
        dim=dim,
        n_layers=sizes["num_hidden_layers"],
        n_heads=sizes["num_attention_heads"],
        n_kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        hidden_dim=sizes["intermediate_size"],
        fuse_qkv=True,
        attn_backend="flex",
        rope=rope,
    )
    for layer in model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()  # flex has no backward on a CPU
    return spec


def trainer_config(spec: dict[str, Any], folder: str) -> Trainer.Config:
    """Its defaults but for what is aligned: plain loss, no activation checkpointing, no checkpoints, constant lr."""
    config = TimedTrainer.Config(
        model_spec=model_spec(spec["sizes"], spec["seq_len"]),
        hf_assets_path=spec["tokenizer"],
        dump_folder=folder,
        dataloader=SequencesLoader.Config(path=spec["packed"]),
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=spec["lr"]),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=0, decay_ratio=0.0),
        training=TrainingConfig(
            local_batch_size=spec["batch"],
            seq_len=spec["seq_len"],
            steps=spec["steps"],
            disable_cuda_graphs=True,
            mixed_precision_param=spec["dtype"],
        ),
        checkpoint=checkpoint.CheckpointManager.Config(enable=False),
        activation_checkpoint=None,
    )
    config.parallelism.spmd_backend = "partial_dtensor"
    return config


def main() -> None:
    spec = json.loads(sys.argv[1])
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"})
    os.environ["MASTER_PORT"] = str(spec["port"])
    metrics.build_device_memory_monitor = NoMemoryMonitor
    dist_utils.set_pg_timeouts = lambda **_: None
    clock = StepClock(spec["device"], spec["every"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_config(spec, folder).build()
        trainer.clock = clock
        trainer.train()
    labels = load_file(spec["packed"])["labels"]
    tokens = [int((part != -100).sum()) for part in labels.split(spec["batch"])][: spec["steps"]]
    print_result(clock.result(tokens))
    trainer.close()


if __name__ == "__main__":
    main()

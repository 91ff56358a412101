"""The data of a run for programs that know nothing of ours: its packed sequences, and its units one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.preflight import Inputs, preflight
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.data.units import BadLine, parse_unit
from molgen_pretrain.training.build import build_data


def write_packed(path: Path, overrides: Sequence[str], steps: int) -> Path:
    """The first `steps` micro-batches of the run: input_ids and labels, int64 [steps * batch, seq_len]."""
    cfg, inputs = _compose(overrides)
    data, _ = build_data(cfg, inputs, rank=0, data_parallel_size=1, accumulation_steps=1)
    batches = list(islice(iter(data), steps))
    save_file(
        {
            "input_ids": torch.cat([batch.input_ids for batch in batches]),
            "labels": torch.cat([batch.labels for batch in batches]),
        },
        path,
    )
    return path


def write_units(path: Path, overrides: Sequence[str]) -> Path:
    """Every unit with its separator, in an order drawn once: ids int64 [tokens], lengths int64 [units]."""
    cfg, inputs = _compose(overrides)
    texts = [
        text
        for source in inputs.train_sources
        for file in source.files
        for line in Path(file).read_bytes().splitlines()
        if not isinstance(text := parse_unit(line, cfg.data.min_emb_len), BadLine)
    ]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = inputs.tokenizer
    units = [[*ids, tokenizer.pad_id] for ids in tokenizer.encode_batch([texts[number] for number in order])]
    save_file(
        {
            "ids": torch.tensor([token for unit in units for token in unit]),
            "lengths": torch.tensor([len(unit) for unit in units]),
        },
        path,
    )
    return path


def peer_sizes(cfg: RunConfig) -> dict[str, object]:
    """The run's model in the names of transformers' Qwen3Config."""
    sizes = cfg.model.sizes()
    return {**sizes, "rope_parameters": {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}}


def _compose(overrides: Sequence[str]) -> tuple[RunConfig, Inputs]:
    cfg = compose_run(overrides)
    return cfg, preflight(cfg)

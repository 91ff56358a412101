"""What TorchTitan 0.3.0 finds in a checkpoint, from a model of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molgen_pretrain.titan.checkpoint import ADAMW_SETTINGS, MOMENTS, SETTINGS_PREFIX, STATE_PREFIX
from molgen_pretrain.titan.fused import join_fused
from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.names import EMBEDDING, HEAD, fused_members, titan_name
from molgen_pretrain.titan.sizes import Qwen3Sizes
from molgen_pretrain.titan.writer import write_dcp


@dataclass(frozen=True)
class TrainingState:
    """What TorchTitan needs, besides weights, to go on."""

    step: int
    tokens_per_rank: int
    moments: Mapping[str, Mapping[str, LazyTensor]]
    """By Hugging Face name and then checkpoint.MOMENTS."""
    settings: Mapping[str, Mapping[str, Any]]
    """By Hugging Face name and then checkpoint.ADAMW_SETTINGS."""


def export_titan(
    folder: Path,
    weights: Mapping[str, LazyTensor],
    sizes: Qwen3Sizes,
    training: TrainingState | None = None,
    *,
    fused: bool = True,
) -> None:
    """Write a checkpoint to a folder that does not exist.

    Args:
        weights: by Hugging Face name, a tied head once.
        training: None writes weights only.
        fused: TorchTitan is to train q, k and v as one matrix (its default), and wants their moments so.

    Raises:
        OSError: the storage refused.
    """
    entries: dict[str, Any] = {titan_name(name): weight for name, weight in weights.items()}
    if sizes.tie_word_embeddings:
        entries[titan_name(HEAD)] = weights[EMBEDDING]
    if training is not None:
        entries |= {
            "train_state.step": training.step,
            "train_state.ntokens_seen": training.tokens_per_rank,
            "lr_scheduler.last_epoch": training.step,
            **dict(_optimizer_entries(training, sizes, fused)),
        }
    write_dcp(folder, entries)


def _optimizer_entries(training: TrainingState, sizes: Qwen3Sizes, fused: bool) -> Iterator[tuple[str, Any]]:
    owners: dict[str, tuple[str, ...]] = {titan_name(name): (name,) for name in sizes.shapes()}
    if fused:
        for layer in range(sizes.num_hidden_layers):
            together, members = fused_members(layer)
            owners = {name: theirs for name, theirs in owners.items() if theirs[0] not in members}
            owners[together] = members
    for name, theirs in owners.items():
        for key in MOMENTS:
            parts = [training.moments[owner][key] for owner in theirs]
            is_one = len(parts) == 1 or key == "step"
            yield f"{STATE_PREFIX}{name}.{key}", parts[0] if is_one else join_fused(parts, sizes)
        for key, value in _param_group(training.settings[theirs[0]]).items():
            yield f"{SETTINGS_PREFIX}{name}.{key}", value


def _param_group(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that an AdamW of this torch has, since TorchTitan asks for all; its own choice of kernel."""
    lr, betas, eps, weight_decay = (settings[key] for key in ADAMW_SETTINGS)
    adamw = torch.optim.AdamW([torch.zeros(())], lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
    group = {key: value for key, value in adamw.param_groups[0].items() if key != "params"}
    return {**group, "fused": True, "foreach": False, "initial_lr": lr}

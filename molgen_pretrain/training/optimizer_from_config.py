"""The optimizer that a config describes, over the parameter groups of a model."""

from __future__ import annotations

from dataclasses import asdict, fields
from enum import Enum

import torch
from torch import nn

from molgen_pretrain.config.optimizer_schema import AdamConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from molgen_pretrain.optim.optimizer import OptimizerKind, build_optimizer
from molgen_pretrain.optim.param_groups import GroupRule, ParamGroup, build_param_groups

_KINDS: dict[type[OptimizerConfig], OptimizerKind] = {
    AdamWConfig: "adamw",
    AdamConfig: "adam",
    SGDConfig: "sgd",
    MuonConfig: "muon",
}


def param_groups_from_config(cfg: OptimizerConfig, model: nn.Module) -> list[ParamGroup]:
    """The groups of a model, meta or real. Raises UserError for a rule of `optimizer.groups` that has no effect."""
    return build_param_groups(
        model.named_parameters(),
        rules=[GroupRule(**asdict(rule)) for rule in cfg.groups],
        preset=cfg.group_preset.value,
        type_scales={kind: (s["lr_scale"], s["wd_scale"]) for kind, s in asdict(cfg.by_type).items()},
        layer_decay_rate=1.0 if cfg.layer_decay_rate is None else cfg.layer_decay_rate,
        decay_norms_and_biases=cfg.decay_norms_and_biases,
    )


def optimizer_from_config(cfg: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the groups of a model. Raises UserError as `param_groups_from_config` does."""
    groups = param_groups_from_config(cfg, model)
    common = {field.name for field in fields(OptimizerConfig)}
    own = {name: value for name, value in asdict(cfg).items() if name not in common}
    hyperparameters = {name: value.value if isinstance(value, Enum) else value for name, value in own.items()}
    return build_optimizer(_KINDS[type(cfg)], groups, fused=cfg.fused, **hyperparameters)

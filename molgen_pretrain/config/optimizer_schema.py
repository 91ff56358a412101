"""The optimizer group of the schema: one dataclass per choice, and the rules of parameter groups."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from molgen_pretrain.config.choices import GroupPreset, MuonAdjustLr


@dataclass(kw_only=True)
class GroupScales:
    """Factors on the schedule's learning rate and weight decay."""

    lr_scale: float = 1.0
    wd_scale: float = 1.0


@dataclass(kw_only=True)
class TypeScales:
    """optimizer.group_preset=by_type: factors for each type of parameter; the head counts as embedding."""

    embeddings: GroupScales = field(default_factory=GroupScales)
    attention: GroupScales = field(default_factory=GroupScales)
    feed_forward: GroupScales = field(default_factory=GroupScales)
    norms: GroupScales = field(default_factory=GroupScales)
    biases: GroupScales = field(default_factory=GroupScales)


@dataclass(kw_only=True)
class GroupRuleConfig:
    """One entry of optimizer.groups: the first whose glob matches a parameter's name takes it."""

    match: str = MISSING  # e.g. "model.layers.*.mlp.*"; * crosses dots
    name: str | None = None  # in logs and metrics; null: the glob
    lr_scale: float | None = None  # null: what group_preset says
    wd_scale: float | None = None  # null: what group_preset and decay_norms_and_biases say


@dataclass(kw_only=True)
class OptimizerConfig:
    lr: float = MISSING
    weight_decay: float = MISSING
    fused: bool | None = None  # null: wherever torch offers it
    decay_norms_and_biases: bool = True
    group_preset: GroupPreset = GroupPreset.none
    by_type: TypeScales = field(default_factory=TypeScales)
    layer_decay_rate: float | None = None  # group_preset=layerwise: lr_scale = rate ** blocks from the top
    groups: list[GroupRuleConfig] = field(default_factory=list)  # come before the preset


@dataclass(kw_only=True)
class AdamConfig(OptimizerConfig):
    """Adam: weight decay is part of the gradient (L2)."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8


@dataclass(kw_only=True)
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay."""


@dataclass(kw_only=True)
class SGDConfig(OptimizerConfig):
    """Weight decay is part of the gradient (L2)."""

    momentum: float = 0.9
    nesterov: bool = False


@dataclass(kw_only=True)
class MuonConfig(AdamConfig):
    """Muon on hidden matrices; AdamW (betas, eps) on embeddings, head, norms and biases."""

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5  # Newton-Schulz iterations
    adjust_lr: MuonAdjustLr = MuonAdjustLr.match_rms_adamw
    adamw_lr_scale: float = 1.0  # of the learning rate, for the AdamW part

"""The scheduler group of the schema: one dataclass per choice, in the names of its runtime twin in schedules/."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from molgen_pretrain.config.choices import (
    DecayFracOf,
    DecayShape,
    LrDecayStyle,
    LrWsdDecayStyle,
    OnResume,
    WeightDecayStyle,
)


@dataclass(kw_only=True)
class SchedulerConfig:
    """What every choice has. Where a length can be given in steps or as a fraction, the steps win."""

    total_steps: int = MISSING
    start_weight_decay: float = MISSING
    end_weight_decay: float | None = None
    weight_decay_incr_style: WeightDecayStyle = WeightDecayStyle.constant
    decay_beta2: float | None = None  # Adam's beta2 while the learning rate decays; null: the optimizer's own
    on_resume: OnResume = OnResume.strict


@dataclass(kw_only=True)
class WarmupConfig(SchedulerConfig):
    lr_max: float = MISSING
    warmup_steps: int | None = None
    warmup_frac: float | None = None  # of training.steps


@dataclass(kw_only=True)
class ConstantConfig(WarmupConfig):
    warmup_init: float = 0.0


@dataclass(kw_only=True)
class AnnealConfig(WarmupConfig):
    """Down from the end of the warmup to min_lr, which is held after decay_steps."""

    warmup_init: float = 0.0
    min_lr: float = MISSING
    decay_steps: int | None = None  # the step at which the decay ends; null: training.steps


@dataclass(kw_only=True)
class CosineConfig(AnnealConfig):
    pass


@dataclass(kw_only=True)
class LinearConfig(AnnealConfig):
    pass


@dataclass(kw_only=True)
class InverseSqrtConfig(AnnealConfig):
    timescale: int | None = None  # null: the warmup's length


@dataclass(kw_only=True)
class WSDSConfig(WarmupConfig):
    lr_min: float = MISSING
    checkpoints: list[int] = field(default_factory=list)  # milestone steps
    checkpoints_frac: list[float] = field(default_factory=list)  # of training.steps, where checkpoints is empty
    decay_frac: float | None = 0.1
    decay_steps: int | None = None
    decay_frac_of: DecayFracOf = DecayFracOf.target
    decay_shape: DecayShape = DecayShape.linear


@dataclass(kw_only=True)
class WarmupDecayConfig(WarmupConfig):
    """One decay of decay_steps, or decay_frac of training.steps."""

    lr_min: float = MISSING
    warmup_init: float | None = None  # null: lr_min
    decay_steps: int | None = None
    decay_frac: float | None = None
    decay_shape: DecayShape = DecayShape.linear


@dataclass(kw_only=True)
class WSDConfig(WarmupDecayConfig):
    stable_steps: int | None = None  # null: until the decay that ends with training.steps; without one, open-ended
    blend_steps: int = 0  # gradual entry into the decay


@dataclass(kw_only=True)
class WSDAdaptiveConfig(WarmupDecayConfig):
    window: int = 20  # logged losses that are looked at
    threshold: float = 0.005  # relative improvement over the window below which the decay starts
    min_stable_steps: int = 0
    decay_start: int | None = None  # null: decided by the loss


@dataclass(kw_only=True)
class SGDRConfig(WarmupConfig):
    lr_min: float = MISSING
    cycle_length: int | None = None
    cycles: int | None = None  # how many fill training.steps, where cycle_length is null
    cycle_mult: float = 1.0
    warmup_init: float | None = None  # null: lr_min


@dataclass(kw_only=True)
class MegatronConfig(SchedulerConfig):
    """Megatron-LM's own names; its lr is optimizer.lr and its train_iters training.steps."""

    lr_max: float = MISSING
    min_lr: float = 0.0
    lr_decay_style: LrDecayStyle = LrDecayStyle.linear
    lr_decay_iters: int | None = None  # null: training.steps
    lr_warmup_iters: int = 0
    lr_warmup_fraction: float | None = None  # of the decay iterations, not rounded; wins over lr_warmup_iters
    lr_warmup_init: float = 0.0
    lr_wsd_decay_style: LrWsdDecayStyle = LrWsdDecayStyle.exponential
    lr_wsd_decay_iters: int | None = None
    override_opt_param_scheduler: bool = False  # on_resume=override
    use_checkpoint_opt_param_scheduler: bool = False  # on_resume=use_checkpoint

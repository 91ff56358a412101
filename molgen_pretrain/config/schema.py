"""The schema: every setting with its type and default, one dataclass per config group.

YAML files in conf/ choose; this file is the only home of types and defaults, choices.py that of words to choose from.
(OmegaConf rejects `Literal`, and schemas must not be frozen to be composed.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from molgen_pretrain.config.choices import (
    DecayFracOf,
    DecayShape,
    Device,
    Dtype,
    GroupPreset,
    HfExport,
    InitMode,
    Layout,
    LrDecayStyle,
    LrWsdDecayStyle,
    MuonAdjustLr,
    OnBadLine,
    OnResume,
    Overflow,
    ReshardAfterForward,
    WandbMode,
    WeightDecayStyle,
)

SAMPLE_DIR = Path(__file__).resolve().parent.parent / "sample"


@dataclass(kw_only=True)
class ModelConfig:
    """Qwen3 architecture, in the names of its Hugging Face config."""

    vocab_size: int = MISSING  # rows of the embedding, at least the tokenizer's size
    hidden_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    head_dim: int = MISSING
    intermediate_size: int = MISSING
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = True
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    loss_chunk_tokens: int = 0  # tokens whose logits exist at a time; 0: all of a micro-batch


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


@dataclass(kw_only=True)
class DataConfig:
    train_path: Any = MISSING  # a .jsonl file, a folder of them, a glob, or a list of those
    valid_path: Any = None
    tokenizer: str = MISSING  # folder with tokenizer.json and tokenizer_config.json
    embedding_rows: int = MISSING  # rows that models for this tokenizer have (Qwen3: 151936)
    seq_len: int = MISSING
    seed: int | None = None
    shuffle_lines: bool = True
    infinite: bool = True
    min_emb_len: int = 16  # shortest embedded_smiles that counts as a conformer, characters
    lookahead_limit: int = 65536  # pending units that the packer may choose from
    overflow: Overflow = Overflow.truncate  # a unit longer than seq_len - 1 tokens
    on_bad_line: OnBadLine = OnBadLine.skip
    num_workers: int = 1
    pin_memory: bool = True
    prefetch_factor: int = 4
    persistent_workers: bool = True
    cache_dir: str = MISSING


@dataclass(kw_only=True)
class ParallelismConfig:
    layout: Layout = Layout.single
    data_parallel_shard_degree: int = 1  # -1: every rank
    fsdp_reshard_after_forward: ReshardAfterForward = ReshardAfterForward.default
    timeout_seconds: int = 600  # how long a collective may wait for a rank


@dataclass(kw_only=True)
class TrainingConfig:
    steps: int = MISSING
    seq_len: int = MISSING
    local_batch_size: int = MISSING  # sequences per rank and micro-batch
    global_batch_size: int = -1  # sequences per update; -1: no gradient accumulation
    max_norm: float = 1.0  # gradient clipping; 0: off
    dtype: Dtype = Dtype.float32  # compute; master weights are float32 always. auto: what the hardware has
    seed: int = 42
    device: Device = Device.auto


@dataclass(kw_only=True)
class CheckpointConfig:
    enable: bool = True
    interval: int = 500
    keep_latest_k: int = 3  # 0: all
    at_lr: list[float] = field(default_factory=list)  # also keep where a decay first reaches one of these
    hf_export: HfExport = HfExport.last


@dataclass(kw_only=True)
class MetricsConfig:
    log_freq: int = 10
    tensorboard: bool = True
    wandb: WandbMode = WandbMode.disabled
    wandb_project: str = "molgen-pretrain"
    wandb_entity: str | None = None
    wandb_group: str | None = None
    progress_bar: bool = True  # only ever on a terminal


@dataclass(kw_only=True)
class ValidationConfig:
    enable: bool = True
    freq: int = 500
    steps: int = -1  # batches per rank; -1: the whole split
    local_batch_size: int = MISSING


@dataclass(kw_only=True)
class PathsConfig:
    """Where things are; the YAML files fill them from the environment."""

    sample: str = str(SAMPLE_DIR)
    data: str = MISSING
    conformers_train: str = MISSING
    conformers_valid: str = MISSING
    tokenizer: str = MISSING
    runs: str = MISSING
    cache: str = MISSING


@dataclass(kw_only=True)
class InitConfig:
    """How the weights begin: `source` is the key `init.from` (a word that Python reserves)."""

    mode: InitMode = InitMode.scratch
    source: str | None = None


@dataclass(kw_only=True)
class RunConfig:
    model: ModelConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    data: DataConfig = MISSING
    parallelism: ParallelismConfig = MISSING
    training: TrainingConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    metrics: MetricsConfig = MISSING
    validation: ValidationConfig = MISSING
    init: Any = MISSING  # a mapping while composing; `to_run_config` makes it an InitConfig
    paths: PathsConfig = MISSING
    run_name: str | None = None  # null: YYMMDD-HHMM-<4 hex>-<description>
    description: str = "run"


def world_size_from_env() -> int:
    """Number of processes that a launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))

"""The schema: every setting with its type and default, one dataclass per config group.

YAML files in conf/ choose; this file is the only home of types and defaults, choices.py that of words to choose from.
(OmegaConf rejects `Literal`, and schemas must not be frozen to be composed.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from molgen_pretrain.config.choices import (
    ActivationCheckpointing,
    AnomalyAction,
    AsyncMode,
    Device,
    Dtype,
    ExportDtype,
    Float8,
    HfExport,
    InitMode,
    LossKernel,
    NewTokens,
    OnBadLine,
    OnDamage,
    Overflow,
    ReshardAfterForward,
    TokenCache,
    WandbMode,
)
from molgen_pretrain.config.optimizer_schema import OptimizerConfig
from molgen_pretrain.config.scheduler_schema import SchedulerConfig

SAMPLE_DIR = Path(__file__).resolve().parent.parent / "sample"


@dataclass(kw_only=True)
class Qwen3Sizes:
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


@dataclass(kw_only=True)
class ModelConfig(Qwen3Sizes):
    """An architecture, and how it is computed, which changes speed and memory but not what is learned."""

    loss_kernel: LossKernel = LossKernel.auto
    loss_chunk_tokens: int | None = None  # whose logits exist at a time; null: by the vocabulary; 0: all at once
    fused_ops: bool = True  # norms, rotary positions and SwiGLU in fewer passes over memory than transformers' own

    def sizes(self) -> dict[str, Any]:
        """The architecture alone, as a model is built from it."""
        return {size.name: getattr(self, size.name) for size in fields(Qwen3Sizes)}


@dataclass(kw_only=True)
class SourceConfig:
    """One entry of data.sources."""

    path: Any = MISSING  # as data.train_path
    weight: float = MISSING  # share of the sequences, relative to the other sources' weights
    name: str | None = None  # in logs and metrics; null: the last part of the path


@dataclass(kw_only=True)
class DataConfig:
    train_path: Any = MISSING  # a .jsonl file, a folder of them, a glob, or a list of those
    sources: list[SourceConfig] = field(default_factory=list)  # a mixture; where given, train_path is not read
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
    document_mask: bool = False  # attention stays within a unit, positions restart with it
    cache_dir: str = MISSING
    cache: TokenCache = TokenCache.auto  # what the one-time pass keeps besides lengths
    cache_budget_gib: float = 256.0  # cache=auto: most that one data set's token ids may take
    index_processes: int | None = None  # of the one-time pass; null: every usable core


@dataclass(kw_only=True)
class ParallelismConfig:
    """The three degrees multiply to the number of processes; one of the first two may be -1, what is left."""

    data_parallel_replicate_degree: int = 1  # copies of the model; by DDP where they are whole
    data_parallel_shard_degree: int = 1  # parts that FSDP2 cuts a copy into
    tensor_parallel_degree: int = 1  # parts that each weight is cut into besides, on neighbouring ranks
    fsdp_reshard_after_forward: ReshardAfterForward = ReshardAfterForward.default
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    fsdp_prefetch: int = 0  # blocks whose weights are gathered ahead of the one that runs; 0: as FSDP2 orders it
    compile: bool | None = None  # each block by itself; null: on CUDA, where it gains most
    cpu_offload: bool = False  # FSDP2 keeps weights, gradients and optimizer state on the host
    timeout_seconds: int = 600  # how long a collective may wait for a rank


@dataclass(kw_only=True)
class TrainingConfig:
    steps: int = MISSING
    stop_after: int | None = None  # end after this step, saved; started again without it, the run goes on. 0: at once
    seq_len: int = MISSING
    local_batch_size: int = MISSING  # sequences per rank and micro-batch
    global_batch_size: int = -1  # sequences per update; -1: no gradient accumulation
    max_norm: float = 1.0  # gradient clipping; 0: off
    dtype: Dtype = Dtype.float32  # compute; master weights are float32 always. auto: what the hardware has
    float8: Float8 = Float8.none  # linear layers of the blocks, on GPUs that multiply it; needs the extra `float8`
    seed: int = 42
    device: Device = Device.auto
    deterministic: bool = False  # bit-identical repeats on a GPU too; slower, see docs/resume.md
    anomaly: AnomalyAction = AnomalyAction.stop  # what to do at a loss or gradient that is not finite, or a spike
    max_anomalies: int = 10  # that a run survives
    spike_sigmas: float | None = None  # a loss or gradient norm so many deviations above the mean; null: any is fine
    spike_window: int = 128  # steps that mean and deviation are taken over
    profile_steps: list[int] = field(default_factory=list)  # first and last step to profile; none: []


@dataclass(kw_only=True)
class CheckpointConfig:
    enable: bool = True
    interval: int = 500
    async_mode: AsyncMode = AsyncMode.sync
    keep_latest_k: int = 3  # 0: all
    on_damage: OnDamage = OnDamage.fallback
    max_failures: int = 3  # saves in a row that may fail before the run ends
    at_lr: list[float] = field(default_factory=list)  # also keep where a decay first reaches one of these
    hf_export: HfExport = HfExport.last
    hf_export_dtype: ExportDtype = ExportDtype.float32
    hf_export_shard_size: str = "4GB"  # most that a weight file holds, where a tensor fits in: KB, MB, GB, TB


@dataclass(kw_only=True)
class MetricsConfig:
    log_freq: int = 10
    save_for_all_ranks: bool = False  # the others' rows too, in metrics.rankN.jsonl: their own speed and memory
    token_class_loss: bool = False  # also the loss of SMILES, tags, coordinates and the rest by themselves
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
    aliases: dict[str, Any] = field(default_factory=dict)  # places by the names of a migrated paths.yaml


@dataclass(kw_only=True)
class InitConfig:
    """How the weights begin; these are random, from `training.seed`.

    In the modes below `source` is the key `init.from`, a word that Python reserves.
    """

    mode: InitMode = InitMode.scratch


@dataclass(kw_only=True)
class ResumeInit(InitConfig):
    source: str = MISSING  # a run directory, whose newest step is taken, or a step directory
    model_only: bool = False  # the weights alone: new optimizer, step 0, data from the start


@dataclass(kw_only=True)
class HfPretrainInit(InitConfig):
    source: str = MISSING  # a Hugging Face folder, or a hub id where there is no such folder
    new_tokens: NewTokens = NewTokens.normal  # rows of tokens that the snapshot does not know
    tokenizer: str | None = None  # of the snapshot, where its folder has none


@dataclass(kw_only=True)
class SweepConfig:
    """A multirun; a single run has no use for it."""

    plan_only: bool = False  # show what would be trained, and train nothing


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
    init: Any = MISSING  # a mapping while composing; `to_run_config` makes it an InitConfig of its mode
    paths: PathsConfig = MISSING
    sweep: SweepConfig = field(default_factory=SweepConfig)
    run_name: str | None = None  # a multirun's names the sweep; null: YYMMDD-HHMM-<4 hex>-<description>
    description: str = "run"


def world_size_from_env() -> int:
    """Number of processes that a launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))

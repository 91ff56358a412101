"""The table: every key of the replaced stack, its type, and what it is here.

A key has a setting here (`new`), or a reason why nothing corresponds (`obsolete`), or neither: then several keys
decide together (schedule.py, start.py, translate.py). `default` is what the old stack took where a file left the key
out, as far as it bears on what is trained or is easily missed; None: this program's own default stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Kind(Enum):
    """The type of a value, in words for a message."""

    TEXT = "a string"
    PLACE = "a path or an alias, as a string"
    WHOLE = "a whole number"
    NUMBER = "a number"
    FLAG = "true or false"
    STEPS = "a list of whole numbers"

    def accepts(self, value: Any) -> bool:
        if self in (Kind.TEXT, Kind.PLACE):
            return isinstance(value, str)
        if self is Kind.FLAG:
            return isinstance(value, bool)
        if self is Kind.STEPS:
            return isinstance(value, list) and all(map(Kind.WHOLE.accepts, value))
        if isinstance(value, bool) or not isinstance(value, int if self is Kind.WHOLE else int | float):
            return False
        return math.isfinite(value)


@dataclass(frozen=True)
class Key:
    kind: Kind
    new: str = ""
    default: Any = None
    obsolete: str = ""
    words: Mapping[str, Any] = field(default_factory=dict)  # old word (in lower case) -> value here; empty: any value


_REGISTRY = "a name in the old stack's registry of data sets; here the data are the JSONL files of the path"
_DTYPES = {"float32": "float32", "bfloat16": "bfloat16"}
_DECAYS = {"linear": "linear", "cosine": "cosine", "sqrt": "wsd", "constant": "constant"}  # schedulers here
_RESHARD = {word: word for word in ("default", "always", "never")}
_ASYNC = {"disabled": "sync", "sync": "sync", "async": "async", "async_with_pinned_mem": "async"}

KEYS: dict[str, Key] = {
    "job.description": Key(Kind.TEXT),
    "job.dump_folder": Key(Kind.PLACE),
    "job.print_config": Key(
        Kind.FLAG, obsolete="--cfg job --resolve prints the run, and config.yaml in its directory keeps it"
    ),
    "job.custom_config_module": Key(Kind.TEXT, obsolete="the schema is molgen_pretrain/config, for every run"),
    "molgen_run.init_mode": Key(Kind.TEXT, words={mode: mode for mode in ("scratch", "hf_pretrain", "resume")}),
    "molgen_run.tokenizer_tag": Key(Kind.PLACE),
    "molgen_run.base_model_tag": Key(Kind.PLACE),
    "molgen_run.resume_run_path_tag": Key(Kind.PLACE),
    "molgen_run.run_name": Key(Kind.TEXT),
    "model.name": Key(Kind.TEXT),
    "model.flavor": Key(Kind.TEXT),
    "model.hf_assets_path": Key(Kind.PLACE),
    "training.seq_len": Key(Kind.WHOLE, "training.seq_len", 2048),
    "training.local_batch_size": Key(Kind.WHOLE, "training.local_batch_size", 8),
    "training.global_batch_size": Key(Kind.WHOLE, "training.global_batch_size", -1),
    "training.steps": Key(Kind.WHOLE, "training.steps", 10000),
    "training.max_norm": Key(Kind.NUMBER, "training.max_norm", 1.0),
    "training.dtype": Key(Kind.TEXT, "training.dtype", words=_DTYPES),
    "training.seed": Key(Kind.WHOLE, "training.seed"),
    "training.dataset": Key(Kind.TEXT, obsolete=_REGISTRY),
    "training.dataset_path": Key(Kind.PLACE),
    "optimizer.name": Key(Kind.TEXT, default="adamw", words={"adamw": "adamw", "adam": "adam"}),
    "optimizer.lr": Key(Kind.NUMBER),
    "optimizer.beta1": Key(Kind.NUMBER, default=0.9),
    "optimizer.beta2": Key(Kind.NUMBER, default=0.95),
    "optimizer.eps": Key(Kind.NUMBER, "optimizer.eps", 1e-8),
    "optimizer.weight_decay": Key(Kind.NUMBER, "optimizer.weight_decay", 0.1),
    "lr_scheduler.warmup_steps": Key(Kind.WHOLE, default=200),
    "lr_scheduler.decay_type": Key(Kind.TEXT, default="linear", words=_DECAYS),
    "wsds_scheduler.enable": Key(Kind.FLAG, default=False),
    "wsds_scheduler.warmup_steps": Key(Kind.WHOLE, default=0),
    "wsds_scheduler.checkpoints": Key(Kind.STEPS),
    "wsds_scheduler.lr_max": Key(Kind.NUMBER),
    "wsds_scheduler.lr_min": Key(Kind.NUMBER, default=0.0),
    "wsds_scheduler.decay_frac": Key(Kind.NUMBER, default=0.1),
    "wsds_scheduler.decay_steps": Key(Kind.WHOLE),
    "wsds_scheduler.base_lr": Key(Kind.NUMBER),
    "checkpoint.enable": Key(Kind.FLAG, "checkpoint.enable"),
    "checkpoint.interval": Key(Kind.WHOLE, "checkpoint.interval", 500),
    "checkpoint.keep_latest_k": Key(Kind.WHOLE, "checkpoint.keep_latest_k", 10),
    "checkpoint.folder": Key(Kind.TEXT, obsolete="always checkpoint/ in the run directory"),
    "checkpoint.initial_load_path": Key(Kind.PLACE),
    "checkpoint.initial_load_in_hf": Key(Kind.FLAG),
    "checkpoint.initial_load_model_only": Key(Kind.FLAG),
    "checkpoint.last_save_in_hf": Key(Kind.FLAG),
    "checkpoint.save_hf_per_checkpoint": Key(Kind.FLAG),
    "checkpoint.async_mode": Key(Kind.TEXT, "checkpoint.async_mode", words=_ASYNC),
    "checkpoint.create_seed_checkpoint": Key(
        Kind.FLAG, obsolete="initial weights follow from training.seed alone, the same on any number of processes"
    ),
    "metrics.log_freq": Key(Kind.WHOLE, "metrics.log_freq", 10),
    "metrics.enable_wandb": Key(Kind.FLAG),
    "metrics.save_for_all_ranks": Key(Kind.FLAG, "metrics.save_for_all_ranks"),
    "metrics.save_tb_folder": Key(Kind.TEXT, obsolete="always tb/ in the run directory"),
    "parallelism.data_parallel_replicate_degree": Key(Kind.WHOLE, "parallelism.data_parallel_replicate_degree", 1),
    "parallelism.data_parallel_shard_degree": Key(Kind.WHOLE, "parallelism.data_parallel_shard_degree", -1),
    "parallelism.tensor_parallel_degree": Key(Kind.WHOLE, "parallelism.tensor_parallel_degree", 1),
    "parallelism.fsdp_reshard_after_forward": Key(
        Kind.TEXT, "parallelism.fsdp_reshard_after_forward", "default", words=_RESHARD
    ),
    "validation.enable": Key(Kind.FLAG, "validation.enable", False),
    "validation.dataset": Key(Kind.TEXT, obsolete=_REGISTRY),
    "validation.dataset_path": Key(Kind.PLACE),
    "validation.local_batch_size": Key(Kind.WHOLE, "validation.local_batch_size", 8),
    "validation.seq_len": Key(Kind.WHOLE),
    "validation.freq": Key(Kind.WHOLE, "validation.freq", 10),
    "validation.steps": Key(Kind.WHOLE, "validation.steps", -1),
    "molgen_data.train_path_key": Key(Kind.PLACE),
    "molgen_data.tokenizer_key": Key(Kind.PLACE),
    "molgen_data.min_emb_len": Key(Kind.WHOLE, "data.min_emb_len", 16),
    "molgen_data.shuffle_lines": Key(Kind.FLAG, "data.shuffle_lines", True),
    "molgen_data.infinite": Key(Kind.FLAG, "data.infinite", True),
    "molgen_data.seed": Key(Kind.WHOLE, "data.seed"),
    "molgen_data.num_workers": Key(Kind.WHOLE, "data.num_workers"),
    "molgen_data.pin_memory": Key(Kind.FLAG, "data.pin_memory"),
    "molgen_data.drop_last": Key(
        Kind.FLAG, obsolete="a global batch is always full; with data.infinite=false the rest of the last epoch is left"
    ),
    "molgen_data.persistent_workers": Key(Kind.FLAG, "data.persistent_workers"),
    "molgen_data.prefetch_factor": Key(Kind.WHOLE, "data.prefetch_factor"),
    "molgen_data.lookahead_limit": Key(Kind.WHOLE, "data.lookahead_limit"),
}

# Keys of these sections are taken whatever their names are.
OBSOLETE_SECTIONS = {"experimental": "it loaded code into the old trainer; model, data and schedules are built in here"}

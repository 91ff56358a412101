"""From the composed DictConfig to plain dataclasses, once; nothing after this sees OmegaConf."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, ValidationError

from molgen_pretrain.config.choices import InitMode, LossKernel, OnResume
from molgen_pretrain.config.scheduler_schema import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    MegatronConfig,
    SchedulerConfig,
    SGDRConfig,
    WSDAdaptiveConfig,
    WSDConfig,
    WSDSConfig,
)
from molgen_pretrain.config.schema import (
    DataConfig,
    HfPretrainInit,
    InitConfig,
    ModelConfig,
    ParallelismConfig,
    PathsConfig,
    ResumeInit,
    RunConfig,
)
from molgen_pretrain.errors import UserError
from molgen_pretrain.model import loss_kernels
from molgen_pretrain.schedules import (
    SGDR,
    WSD,
    WSDS,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Megatron,
    Schedule,
    WSDAdaptive,
)

_INIT_SCHEMAS = {InitMode.scratch: InitConfig, InitMode.resume: ResumeInit, InitMode.hf_pretrain: HfPretrainInit}
_FROM = "from"  # the key that the schemas call `source`
_SCHEDULES: dict[type[SchedulerConfig], type[Schedule]] = {
    WSDSConfig: WSDS,
    WSDConfig: WSD,
    WSDAdaptiveConfig: WSDAdaptive,
    SGDRConfig: SGDR,
    CosineConfig: Cosine,
    LinearConfig: Linear,
    InverseSqrtConfig: InverseSqrt,
    ConstantConfig: Constant,
    MegatronConfig: Megatron,
}


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Plain dataclasses of a composed config.

    Raises UserError for values that nobody gave (`???`) and for keys that no schema knows (Hydra's `+key=value`
    adds those), all of them in one message.
    """
    problems = [f"{key}: a value is needed; give {key}=VALUE" for key in sorted(OmegaConf.missing_keys(cfg))]
    problems += _unknown_keys(cfg)
    if problems:
        raise UserError("\n".join(problems))
    plain = cast("RunConfig", OmegaConf.to_object(cfg))
    plain.init = _init_config(plain.init)
    return plain


def build_schedule(cfg: SchedulerConfig) -> Schedule:
    """The schedule that a scheduler config describes. Raises ScheduleError where it cannot be."""
    values = {k: v.value if isinstance(v, Enum) else v for k, v in asdict(cfg).items() if k != "on_resume"}
    return _SCHEDULES[type(cfg)](**values)


def loss_kernel(model: ModelConfig, tensor_degree: int) -> loss_kernels.LossKernel:
    """How the head's cross entropy is computed: under tensor parallelism a rank has only a part of the head."""
    if model.loss_kernel is LossKernel.auto:
        return "fused" if tensor_degree == 1 else "checkpointed"
    return model.loss_kernel.value


def compiles_blocks(parallelism: ParallelismConfig, *, on_gpu: bool) -> bool:
    """Whether blocks are compiled: on a GPU unless told otherwise; a CPU gains 2 % and waits seconds at the start."""
    return on_gpu if parallelism.compile is None else parallelism.compile


def data_seed(cfg: RunConfig) -> int:
    """The seed of the data's order; null falls back to the run's."""
    return cfg.training.seed if cfg.data.seed is None else cfg.data.seed


def runs_dir(paths: PathsConfig) -> Path:
    """The folder of run directories."""
    return Path(paths.runs).expanduser().absolute()


def resume_source(init: ResumeInit) -> Path:
    """The run or step directory to start from."""
    return Path(init.source).expanduser().absolute()


def cache_dir(data: DataConfig) -> Path:
    """Where the one-time pass keeps its result."""
    return Path(data.cache_dir).expanduser()


def cache_budget_bytes(data: DataConfig) -> int:
    """Most that one data set's token ids may take with cache=auto."""
    return int(data.cache_budget_gib * 2**30)


def source_names(data: DataConfig) -> list[str]:
    """The names of a mixture's sources: what was given, or the last part of the path without its suffixes."""
    return [source.name or _path_name(source.path) or f"source{number}" for number, source in enumerate(data.sources)]


def resume_policy(cfg: SchedulerConfig) -> OnResume:
    """What a resume does where the schedule differs: `on_resume`, or what Megatron's two switches say.

    Raises UserError where a switch contradicts an `on_resume` other than strict.
    """
    if not isinstance(cfg, MegatronConfig):
        return cfg.on_resume
    switches = {
        "override_opt_param_scheduler": (cfg.override_opt_param_scheduler, OnResume.override),
        "use_checkpoint_opt_param_scheduler": (cfg.use_checkpoint_opt_param_scheduler, OnResume.use_checkpoint),
    }
    policy = cfg.on_resume
    for name, (is_on, meant) in switches.items():
        if is_on and policy not in (OnResume.strict, meant):
            raise UserError(f"scheduler.{name}=true: contradicts scheduler.on_resume={policy.value}; give one")
        policy = meant if is_on else policy
    return policy


def _path_name(path: Any) -> str:
    return Path(path).name.split(".")[0] if isinstance(path, str) else ""


def _unknown_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    schema = OmegaConf.get_type(cfg)
    if not is_dataclass(schema):
        return
    legal = [f.name for f in fields(schema)]
    for key in map(str, cfg):
        path = f"{prefix}{key}"
        if key not in legal:
            yield f"{path}: unknown key; legal here: {', '.join(sorted(legal))}"
        elif not OmegaConf.is_missing(cfg, key) and isinstance(cfg[key], DictConfig):
            yield from _unknown_keys(cfg[key], f"{path}.")


def _init_config(given: dict[str, Any]) -> InitConfig:
    """The init group in the schema of its mode. Raises UserError for keys and values that are not in it."""
    modes = [m.value for m in InitMode]
    mode_name = given.get("mode")
    if mode_name not in modes:
        raise UserError(f"init.mode={mode_name}: must be one of {', '.join(modes)}")
    node = OmegaConf.structured(_INIT_SCHEMAS[InitMode(mode_name)])
    legal = {_FROM if name == "source" else name: name for name in node}
    problems = []
    for key, value in given.items():
        if key not in legal:
            problems.append(f"init.{key}: unknown key for init={mode_name}; legal: {', '.join(sorted(legal))}")
            continue
        try:
            node[legal[key]] = value
        except ValidationError as error:
            problems.append(f"init.{key}={value}: {str(error).splitlines()[0]}")
    problems += [f"init.{key}: a value is needed" for key, name in legal.items() if OmegaConf.is_missing(node, name)]
    if problems:
        raise UserError("\n".join(problems))
    return cast("InitConfig", OmegaConf.to_object(node))

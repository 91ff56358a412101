"""Registration with Hydra: where conf/ is, which schema checks which group, the groups for --help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from molgen_pretrain.config import multirun_schema, optimizer_schema, scheduler_schema, schema

_SCHEMAS: dict[tuple[str | None, str], Any] = {
    (None, "schema"): schema.RunConfig,
    ("model", "schema"): schema.ModelConfig,
    ("optimizer", "schema_adamw"): optimizer_schema.AdamWConfig,
    ("optimizer", "schema_adam"): optimizer_schema.AdamConfig,
    ("optimizer", "schema_sgd"): optimizer_schema.SGDConfig,
    ("optimizer", "schema_muon"): optimizer_schema.MuonConfig,
    ("scheduler", "schema_wsds"): scheduler_schema.WSDSConfig,
    ("scheduler", "schema_wsd"): scheduler_schema.WSDConfig,
    ("scheduler", "schema_wsd_adaptive"): scheduler_schema.WSDAdaptiveConfig,
    ("scheduler", "schema_sgdr"): scheduler_schema.SGDRConfig,
    ("scheduler", "schema_cosine"): scheduler_schema.CosineConfig,
    ("scheduler", "schema_linear"): scheduler_schema.LinearConfig,
    ("scheduler", "schema_inverse_sqrt"): scheduler_schema.InverseSqrtConfig,
    ("scheduler", "schema_constant"): scheduler_schema.ConstantConfig,
    ("scheduler", "schema_megatron"): scheduler_schema.MegatronConfig,
    ("data", "schema"): schema.DataConfig,
    ("parallelism", "schema"): schema.ParallelismConfig,
    ("training", "schema"): schema.TrainingConfig,
    ("checkpoint", "schema"): schema.CheckpointConfig,
    ("metrics", "schema"): schema.MetricsConfig,
    ("validation", "schema"): schema.ValidationConfig,
    ("paths", "schema"): schema.PathsConfig,
    # Hydra's names for what is taken where nothing is chosen.
    ("hydra/launcher", "basic"): multirun_schema.LocalLauncherConfig,
    ("hydra/launcher", "schema_slurm"): multirun_schema.SlurmLauncherConfig,
    ("hydra/sweeper", "basic"): multirun_schema.SweeperConfig,
}


def conf_dir() -> Path:
    """The shipped conf/: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def register() -> None:
    """Tell Hydra the schemas, and OmegaConf the one resolver, which only --help uses."""
    Plugins.instance()  # stores Hydra's own choices, which would otherwise come after ours and replace them
    store = ConfigStore.instance()
    for (group, name), node in _SCHEMAS.items():
        store.store(group=group, name=name, node=node)
    OmegaConf.register_new_resolver("molgen_config_groups", group_choices, replace=True)


def group_choices() -> str:
    """One line per config group with its choices, the default first, for the help text."""
    root = conf_dir()
    defaults = _default_choices(root)
    groups = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name != "hydra")
    lines = []
    for group in groups:
        choices = sorted(p.stem for p in (root / group).glob("*.yaml"))
        default = defaults.get(group)
        if default in choices:
            choices.remove(default)
            choices.insert(0, default)
        prefix = "+" if group == "experiment" else ""
        lines.append(f"  {prefix + group:<13}{', '.join(choices)}")
    return "\n".join(lines)


def _default_choices(root: Path) -> dict[str, str]:
    config = OmegaConf.to_container(OmegaConf.load(root / "config.yaml"), resolve=False)
    assert isinstance(config, dict)
    pairs = [next(iter(entry.items())) for entry in config["defaults"] if isinstance(entry, dict)]
    return {str(group): str(choice) for group, choice in pairs}

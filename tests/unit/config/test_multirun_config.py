"""The launchers and sweepers that a user can choose."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from molgen_pretrain.config.multirun_schema import SlurmLauncherConfig
from molgen_pretrain.config.store import conf_dir, register
from molgen_pretrain.launchers.slurm_settings import SlurmSettings

LAUNCHERS = ["basic", *sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"))]


def hydra_node(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True).hydra


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_is_a_plugin_with_settings_that_it_takes(name: str) -> None:
    launcher = hydra_node(f"hydra/launcher={name}").launcher
    assert launcher._target_ in Plugins.instance().class_name_to_class
    if name.startswith("slurm"):
        plain = OmegaConf.to_object(launcher)
        assert isinstance(plain, SlurmLauncherConfig)
        settings = {k: v for k, v in vars(plain).items() if k not in ("_target_", "executor")}
        assert SlurmSettings(**settings).ranks == plain.nodes * plain.tasks_per_node


def test_what_is_taken_where_nothing_is_chosen_is_ours() -> None:
    """Hydra calls its own plugins basic as well; another program's are not touched by that."""
    for node in (hydra_node(), hydra_node("hydra/launcher=basic", "hydra/sweeper=basic")):
        assert node.launcher == {
            "_target_": "hydra_plugins.molgen_pretrain_launch.launchers.LocalLauncher",
            "parallel": 1,
            "processes": 1,
        }
        assert node.sweeper._target_ == "hydra_plugins.molgen_pretrain_launch.sweepers.PointsSweeper"
        assert not node.sweeper.share_trunk
    assert hydra_node("hydra/sweeper=trunk").sweeper.share_trunk


def test_the_ranks_of_a_node_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU_PER_NODE", "4")
    launcher = hydra_node("hydra/launcher=slurm_nodes", "hydra.launcher.nodes=2").launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (2, 4, 4)


def test_a_misspelt_setting_of_a_launcher_is_refused() -> None:
    with pytest.raises(HydraException, match="partitoin"):
        hydra_node("hydra/launcher=slurm", "hydra.launcher.partitoin=gpu")

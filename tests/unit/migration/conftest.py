from collections.abc import Callable
from pathlib import Path

import pytest

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.migration import Migration, migrate

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RUN_NAME", "WANDB_RUN_NAME", "RUN_DESC", "JOB_DESCRIPTION", "OLD_DATA", "NGPU_PER_NODE")
    for name in (*names, "MOLGEN_TRAIN", "MOLGEN_VALID", "MOLGEN_TOKENIZER", "MOLGEN_DATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def migrated(tmp_path: Path) -> Callable[[str], Migration]:
    """Migrates the text of a TOML file, with the paths.yaml beside this file, to experiment=mine."""

    def run(toml: str, **options: object) -> Migration:
        old = tmp_path / "old.toml"
        old.write_text(toml)
        result = migrate(old, HERE / "paths.yaml", tmp_path / "conf" / "experiment" / "mine.yaml", **options)
        result.write()
        return result

    return run


@pytest.fixture
def composed(migrated, tmp_path: Path) -> Callable[[str], RunConfig]:
    """The run that the application composes from the migrated text."""

    def run(toml: str) -> RunConfig:
        migrated(toml, replace=True)
        return compose_run(["+experiment=mine"], tmp_path / "conf")

    return run


@pytest.fixture
def old_text() -> Callable[[str], str]:
    return lambda name: (HERE / f"{name}.toml").read_text()

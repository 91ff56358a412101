"""The text of the two new files, and where they go."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from molgen_pretrain.config.store import conf_dir
from molgen_pretrain.errors import UserError

_ORDER = ("training", "optimizer", "scheduler", "data", "parallelism", "checkpoint", "metrics", "validation", "init")
_SHIPPED_PATHS = {"schema", "local", "cluster"}
_NUMBERS = re.compile(r":\n((?: *- [-+.\de]+\n)+)")


@dataclass(frozen=True)
class Target:
    """FOLDER/experiment/NAME.yaml, and FOLDER/paths/NAME.yaml beside it."""

    folder: Path
    name: str

    @property
    def experiment(self) -> Path:
        return self.folder / "experiment" / f"{self.name}.yaml"

    @property
    def paths(self) -> Path:
        return self.folder / "paths" / f"{self.name}.yaml"

    @property
    def words(self) -> list[str]:
        """What chooses the experiment on the command line."""
        is_shipped = self.folder.resolve() == conf_dir().resolve()
        folder = [] if is_shipped else ["--config-dir", str(self.folder)]
        return [*folder, f"+experiment={self.name}"]


def find_target(out: Path, *, replace: bool) -> Target:
    """Raises UserError where Hydra would not find the file, or a file is there that may not be replaced."""
    if out.suffix != ".yaml" or out.parent.name != "experiment" or not re.fullmatch(r"[A-Za-z0-9_-]+", out.stem):
        raise UserError(f"--out={out}: must be FOLDER/experiment/NAME.yaml, NAME of letters, digits, _ and -")
    target = Target(out.parent.parent, out.stem)
    if target.name in _SHIPPED_PATHS:
        raise UserError(f"--out={out}: paths={target.name} comes with the program; take another name")
    standing = [str(path) for path in (target.experiment, target.paths) if path.exists()]
    if standing and not replace:
        raise UserError(f"--out={out}: {' and '.join(standing)} exists; take another name, or --force to replace it")
    return target


def experiment_text(
    name: str, choices: Mapping[str, str], settings: Mapping[str, Any], *, has_places: bool, head: Collection[str]
) -> str:
    """An experiment that chooses and sets what is given; `head` is what its comment says."""
    chosen = {**choices, **({"paths": name} if has_places else {})}
    tree: dict[str, Any] = {}
    for key in sorted(settings, key=_rank):
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = settings[key]
    lines = ["# @package _global_", *(f"# {line}" for line in head), "defaults:"]
    lines += [f"  - override /{group}: {choice}" for group, choice in chosen.items()]
    return "\n".join(lines) + "\n\n" + _yaml(tree)


def paths_text(tree: Mapping[str, Any], *, head: Collection[str]) -> str:
    """A choice of the group paths: as paths=local, and the old places as `aliases`."""
    lines = [*(f"# {line}" for line in head), "defaults:", "  - local", "  - _self_"]
    return "\n".join(lines) + "\n\n" + _yaml({"aliases": tree})


def _rank(key: str) -> int:
    section = key.partition(".")[0]
    if "." not in key:
        return -1
    return _ORDER.index(section) if section in _ORDER else len(_ORDER)


def _yaml(tree: Mapping[str, Any]) -> str:
    """OmegaConf's own writer knows which texts its reader takes for numbers; lists of numbers go on one line."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(tree)))
    return _NUMBERS.sub(lambda found: f": [{', '.join(re.findall(r'- (.*)', found.group(1)))}]\n", text)

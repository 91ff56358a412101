"""The new files are composed and validated as the run would be, and what is wrong is told by the old file's lines."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.validate import validate
from molgen_pretrain.errors import UserError
from molgen_pretrain.migration.files import Target, experiment_text, paths_text
from molgen_pretrain.migration.keys import KEYS
from molgen_pretrain.migration.ledger import Ledger
from molgen_pretrain.migration.problems import Problem

_NAME = "migrated_file_under_check"
# Settings that are interpolations of those that the old file gave.
_FOLLOWERS = {"scheduler.lr_max": "optimizer.lr", "scheduler.total_steps": "training.steps"}


def fewest_processes(ledger: Ledger) -> int:
    """The product of the degrees that are given; a degree of -1 counts once."""
    degrees = (value for key, value in ledger.settings.items() if key.endswith("_degree"))
    return math.prod(degree for degree in degrees if degree > 0)


def find_problems(ledger: Ledger, processes: int) -> list[Problem]:
    """What the run would refuse. A rule that also depends on a value which is a problem already is left out."""
    choices, settings = dict(ledger.choices), dict(ledger.settings)
    if "init.from" not in settings:  # which has been told, where init needs it
        choices["init"] = "scratch"
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder), _NAME)
        target.experiment.parent.mkdir()
        target.experiment.write_text(experiment_text(_NAME, choices, settings, has_places=True, head=()))
        target.paths.parent.mkdir()
        target.paths.write_text(paths_text(ledger.aliases.tree, head=()))
        try:
            validate(compose_run([f"+experiment={_NAME}"], target.folder), processes)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            message = explain(error)
            assert message
            return list(_located(ledger, message.splitlines()))
    return []


def _located(ledger: Ledger, messages: list[str]) -> Iterator[Problem]:
    in_doubt = set(map(_setting_of, ledger.broken))
    for message in messages:
        mentioned = re.findall(r"[a-z]\w*\.\w+", message)
        sections = {f"{name.partition('.')[0]}." for name in mentioned}
        if in_doubt & {*mentioned, *sections}:
            continue
        setting = mentioned[0] if mentioned else ""
        if setting in _FOLLOWERS and setting not in ledger.origins:
            if any(other.startswith(f"{_FOLLOWERS[setting]}=") for other in messages):
                continue  # said of the setting that it follows
            setting = _FOLLOWERS[setting]
        key = ledger.origins.get(setting) or ledger.origins.get(setting.partition(".")[0])
        if key is None:
            yield Problem(ledger.old.path, 0, message)
        else:
            yield Problem(ledger.old.path, ledger.line(key), message if key == setting else f"{key}: {message}")


def _setting_of(key: str) -> str:
    """The setting that an old key would have become; `model.` for one that decides on a whole group."""
    section, _, name = key.partition(".")
    if key in KEYS and KEYS[key].new:
        return KEYS[key].new
    if section == "model":
        return "model."
    return f"scheduler.{name}" if section in ("wsds_scheduler", "lr_scheduler") else key

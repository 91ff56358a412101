"""Hydra's and OmegaConf's errors in our form: `section.key=value: rule; legal values or fix`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from molgen_pretrain.errors import UserError


def explain(error: BaseException) -> str | None:
    """A message for the user, or None where the error is not the user's (and its traceback is wanted)."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, ConfigCompositionException):
        cause = error.__cause__
        override = re.search(r"(?:Could not override '|Error merging override )([^'\n]+)", str(error))
        given = override.group(1) if override else ""
        if isinstance(cause, OmegaConfBaseException):
            return _omegaconf(cause, given)
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error, "")
    if isinstance(error, HydraException):
        return str(error)
    return None


def _omegaconf(error: OmegaConfBaseException, given: str) -> str:
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return _unknown_key(error, given)
    first_line = str(error).splitlines()[0]
    key = str(error.full_key) if error.full_key else given.partition("=")[0]
    if isinstance(error, ValidationError):
        shown = given if given.lstrip("+").startswith(f"{key}=") else key
        return f"{shown}: {first_line}"
    return f"{key}: {first_line}"


def _unknown_key(error: OmegaConfBaseException, given: str) -> str:
    full_key = str(error.full_key or given.lstrip("+").partition("=")[0])
    if full_key in ("launcher", "sweeper"):
        return f"{given.partition('=')[0] or full_key}: unknown key; Hydra's own settings begin with hydra.{full_key}."
    section, _, key = full_key.rpartition(".")
    parent = error.parent_node
    legal = sorted(str(k) for k in parent) if isinstance(parent, DictConfig) else []
    where = f"{section} has" if section else "the top level has"
    return f"{full_key}: unknown key{_suggestion(key, legal)}; {where}: {', '.join(legal)}"


def _missing_choice(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [o for o in error.options or [] if not o.startswith("schema")]
    if not group or not options:
        return str(error)
    return f"{group}={name}: no such choice{_suggestion(name, options)}; {group} has: {', '.join(sorted(options))}"


def _suggestion(name: str, legal: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(legal), n=1)
    return f", did you mean {close[0]}?" if close else ""

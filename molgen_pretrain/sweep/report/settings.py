"""What the points of a comparison differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from molgen_pretrain.sweep.report.records import Point

# Names and places, which are no settings of the training.
_BOOKKEEPING = ("run_name", "description", "training.stop_after", "paths.", "hydra.", "hydra/")


def differing_settings(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Settings that are not the same everywhere: the value of each point, "" where it has none.

    What was typed comes first and stands for settings that merely follow it (`optimizer.lr` for the
    `scheduler.lr_max` that is interpolated from it). A setting that only some points have, because they have
    chosen another scheduler, say, does not differ by that alone: the choice that was typed does.
    """
    typed = [_typed(point.overrides) for point in points]
    configs = [point.edge.run.config for point in points]
    merged = [{**of_point, **config} for of_point, config in zip(typed, configs, strict=True)]
    in_config = {key for config in configs for key in config}
    keys = dict.fromkeys(key for settings in (*typed, *configs) for key in settings)
    columns: dict[str, list[Any]] = {}
    for key in keys:
        if key.startswith(_BOOKKEEPING):
            continue
        column = [settings.get(key, "") for settings in merged]
        has = [key in settings for settings in merged]
        known = {_canonical(value) for value, is_known in zip(column, has, strict=True) if is_known}
        if len(known) + (key not in in_config and not all(has)) < 2:
            continue
        if not any(_follows(column, has, kept) for kept in columns.values()):
            columns[key] = column
    return columns


def setting_text(value: Any) -> str:
    """As one would type it."""
    if isinstance(value, str):
        return value
    return f"{value:.10g}" if isinstance(value, float) else json.dumps(value, default=str)


def _typed(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Values by key of `key=value`, `+key=value` and `++key=value`."""
    pairs = (override.partition("=") for override in overrides if not override.startswith("~"))
    return {key.lstrip("+"): _value(text) for key, equals, text in pairs if equals}


def _value(text: str) -> Any:
    """The number, list, ... that `text` means; YAML takes 3e-4 for a word, people do not."""
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text


def _follows(column: Sequence[Any], has: Sequence[bool], kept: Sequence[Any]) -> bool:
    """Whether each known value of `column` stands in `kept` already."""
    return all(
        _canonical(value) == _canonical(other)
        for value, other, is_known in zip(column, kept, has, strict=True)
        if is_known
    )


def _canonical(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)

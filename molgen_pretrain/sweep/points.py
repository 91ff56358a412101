"""The points of a sweep: composed, named and checked, all of them before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from molgen_pretrain.config.frozen import FrozenRun, freeze
from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.plain import build_schedule
from molgen_pretrain.config.preflight import preflight
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.validate import validate
from molgen_pretrain.errors import UserError
from molgen_pretrain.sweep.directory import SweepDirectory
from molgen_pretrain.sweep.names import point_names
from molgen_pretrain.sweep.tree import Candidate, Edge

# What the weights do not depend on, or only through the schedule, which is compared update by update.
_NAMES = ("training.stop_after", "paths.", "sweep.", "run_name", "description")
_FREE = (*_NAMES, "scheduler.", "training.steps")
# What may change from one start of a run to the next.
_LOOSE = (
    *_NAMES, "metrics.", "parallelism.", "checkpoint.", "scheduler.on_resume", "training.device", "data.cache",
    "data.num_workers",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One combination of a sweep's values."""

    name: str
    overrides: tuple[str, ...]  # all that were typed
    varied: tuple[str, ...]  # those in which it differs from other points
    cfg: DictConfig  # composed, unresolved
    config: RunConfig

    def candidate(self) -> Candidate:
        """The point as far as sharing a trunk goes."""
        return Candidate(
            name=self.name,
            schedule=build_schedule(self.config.scheduler),
            steps=self.config.training.steps,
            settings={key: value for key, value in flat_settings(self.config).items() if not key.startswith(_FREE)},
        )

    def frozen(self, edge: Edge, directory: SweepDirectory) -> FrozenRun:
        """This point's config for an edge that it owns."""
        cfg = self.cfg.copy()
        folder = directory.run(edge).root
        with open_dict(cfg):
            cfg.paths.runs, cfg.run_name = str(folder.parent), folder.name
            cfg.metrics.wandb_group = cfg.metrics.wandb_group or directory.name
            if not edge.is_leaf:
                cfg.training.stop_after = edge.end
            if edge.parent is not None:
                # The checkpoint tells of another point's plan; that it is the same so far is what the tree knows.
                cfg.scheduler.on_resume = "override"
        return freeze(cfg, self.overrides)


def make_points(
    overrides: Sequence[Sequence[str]], varied: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]
) -> list[Point]:
    """Compose every point. Raises UserError with the mistakes of all of them."""
    points: list[Point] = []
    problems: list[str] = []
    for name, given, own in zip(point_names(varied), overrides, varied, strict=True):
        composed = _composed(given, compose)
        if isinstance(composed, str):
            problems += _labelled(name, composed)
        else:
            cfg, config = composed
            points.append(Point(name, tuple(given), tuple(own), cfg, config))
    if problems:
        raise UserError("\n".join(problems))
    return points


def _composed(
    overrides: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]
) -> tuple[DictConfig, RunConfig] | str:
    """A point's config, or what is wrong with it."""
    try:
        cfg = compose(overrides)
        return cfg, freeze(cfg, overrides).config
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        return message


def check_points(points: Sequence[Point], *, ranks: int) -> None:
    """What each point would find wrong when it starts on `ranks` processes, now and for all of them.

    Raises UserError. Files that several points share are opened once.
    """
    problems: list[str] = []
    checked: dict[str, list[str]] = {}
    for point in points:
        cfg = point.config
        problems += _labelled(point.name, _problem_of(lambda: validate(cfg, ranks)))  # noqa: B023
        inputs = repr((cfg.data, cfg.validation.enable, cfg.model, cfg.init))
        if inputs not in checked:
            checked[inputs] = _labelled(point.name, _problem_of(lambda: preflight(cfg)))  # noqa: B023
            problems += checked[inputs]
    if problems:
        raise UserError("\n".join(problems))


def flat_settings(config: RunConfig) -> dict[str, Any]:
    """`section.key` -> value of every setting, and the class of a section that has several."""
    return dict(_flatten(config, ""))


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        yield f"{path}.kind".lstrip("."), type(value).__name__
        value = {key: getattr(value, key) for key in vars(value)}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(is_dataclass(inner) for inner in value):
        yield path, [asdict(inner) for inner in value]
    else:
        yield path, value.value if isinstance(value, Enum) else value


def _problem_of(check: Callable[[], Any]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""


def _labelled(name: str, message: str) -> list[str]:
    return [f"{name}: {line}" for line in message.splitlines()]


def stored_differences(point: Point, config_file: Path) -> list[str]:
    """Settings in which a run directory's config.yaml is not this point's, as `key: theirs -> ours`.

    Where things are, what is logged and on how many ranks is left out: that may change from start to start.
    """
    theirs = _flat_container(OmegaConf.to_container(OmegaConf.load(config_file)))
    ours = _flat_container(OmegaConf.to_container(point.cfg, resolve=True, enum_to_str=True))
    return [
        f"{key}: {theirs.get(key)} -> {ours.get(key)}"
        for key in sorted(theirs.keys() | ours.keys())
        if not key.startswith(_LOOSE) and theirs.get(key) != ours.get(key)
    ]


def _flat_container(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    pairs: dict[str, Any] = {}
    for key, inner in value.items():
        pairs |= _flat_container(inner, f"{path}.{key}".lstrip("."))
    return pairs

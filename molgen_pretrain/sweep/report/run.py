"""What a run directory says of a run, whole or not: the report never fails because a run did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import yaml

from molgen_pretrain.metrics.rows import Row, Value, read_rows
from molgen_pretrain.run_directory import RunDirectory

T = TypeVar("T")

_DECAY = "decay"  # the phase at whose end the weights are a finished model


@dataclass(frozen=True)
class Rows:
    """The rows of one kind, ascending by step; a value that a row lacks is NaN. Arrays of shape [rows]."""

    steps: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray  # of each step (train) or of the whole pass (validation)
    stall_seconds: np.ndarray  # training stood still for checkpoints
    phases: tuple[Value, ...]

    @cached_property
    def gaps(self) -> np.ndarray:
        """Updates that each row stands for: those since the row before.

        The first row stands for no more than the second: a run that began at another one's checkpoint is not
        charged for what that one trained.
        """
        gaps = np.diff(self.steps, prepend=0)
        if len(gaps) > 1:
            gaps[0] = min(gaps[0], gaps[1])
        return gaps

    @property
    def begin(self) -> int:
        """The step that the rows begin after."""
        return int(self.steps[0] - self.gaps[0]) if len(self.steps) else 0

    @property
    def last_step(self) -> int | None:
        """None where there are no rows."""
        return int(self.steps[-1]) if len(self.steps) else None

    def loss_at(self, step: int | None) -> float | None:
        """None where there is no row of that step."""
        found = self.loss[self.steps == step]
        return float(found[0]) if len(found) else None


@dataclass(frozen=True)
class Cost:
    """What was spent on some steps of a run, as its rows tell it: restarts and loading do not count."""

    steps: int = 0
    tokens: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.steps + other.steps, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True)
class RunRecord:
    """One run directory as found."""

    directory: RunDirectory
    facts: Mapping[str, Any]  # run.json
    config: Mapping[str, Any]  # flat: {"scheduler.decay_frac": 0.1}
    overrides: tuple[str, ...]
    train: Rows
    validation: Rows
    notes: tuple[str, ...]  # what could not be read

    @property
    def exists(self) -> bool:
        return bool(self.facts or self.config or len(self.train.steps) or self.notes)

    @property
    def status(self) -> str:
        """As run.json has it; empty where it says nothing."""
        return str(self.facts.get("status") or "")

    @property
    def is_current(self) -> bool:
        """Whether run.json still says what it said when it was read."""
        return _read_facts(self.directory, []) == self.facts

    @property
    def error(self) -> str:
        return str(self.facts.get("error") or "")

    @property
    def reached(self) -> int:
        """The last step that is known to be done."""
        noted = self.facts.get("step")
        steps = [noted] if isinstance(noted, int) else []
        return max([*steps, self.train.last_step or 0])

    @property
    def planned_steps(self) -> int | None:
        steps = self.config.get("training.steps")
        return steps if isinstance(steps, int) else None

    @property
    def milestones(self) -> tuple[int, ...]:
        """Steps at which a decay has ended: the phase changes, or the learning rate jumps up, in the next row."""
        rows = self.train
        return tuple(
            int(rows.steps[i])
            for i in range(len(rows.steps) - 1)
            if rows.phases[i] == _DECAY and (rows.phases[i + 1] != _DECAY or rows.lr[i + 1] > rows.lr[i])
        )

    def tokens_at(self, steps: np.ndarray) -> np.ndarray:
        """Tokens trained after each of `steps`, between two rows in proportion; NaN where no row tells."""
        rows = self.train
        known = np.isfinite(rows.tokens)
        if not known.any():
            return np.full(len(steps), math.nan)
        at, tokens = rows.steps[known], rows.tokens[known]
        # A run from scratch has trained nothing at step 0; another's start is as far off as its rows are dense.
        slope = (tokens[1] - tokens[0]) / (at[1] - at[0]) if len(at) > 1 else 0.0
        first = 0.0 if rows.begin == 0 else max(0.0, tokens[0] - slope * (at[0] - rows.begin))
        return np.interp(steps, np.append(rows.begin, at), np.append(first, tokens))

    def cost(self, start: int, end: int | None = None) -> Cost:
        """Of the steps after `start`, up to `end` (None: all there are)."""
        start = max(start, self.train.begin)
        end = max(start, self.reached if end is None else min(end, self.reached))
        rows, validation = self.train, self.validation
        ours = (rows.steps > start) & (rows.steps <= end)
        updates = np.minimum(rows.gaps, rows.steps - start)
        validated = (validation.steps > start) & (validation.steps <= end)
        seconds = (
            np.nansum((rows.seconds * updates)[ours])
            + np.nansum(rows.stall_seconds[ours])
            + np.nansum(validation.seconds[validated])
        )
        tokens = float(np.nan_to_num(np.diff(self.tokens_at(np.array([start, end])))[0]))
        return Cost(end - start, tokens, float(seconds))


def read_run(directory: RunDirectory) -> RunRecord:
    """Everything that can be read; what cannot is in the notes. A folder that is not there gives an empty record."""
    notes: list[str] = []
    config = _read(directory.config.name, notes, lambda: _flat(yaml.safe_load(directory.config.read_text()))) or {}
    overrides = _read(directory.overrides.name, notes, lambda: _texts(directory.overrides.read_text())) or ()
    facts = _read_facts(directory, notes)
    rows = _read(directory.metrics.name, notes, lambda: read_rows(directory.metrics)) or []
    train, validation = _gather(rows, "train", "step_seconds"), _gather(rows, "validation", "seconds")
    if (rows or config) and not facts:
        notes.append(f"no {directory.facts.name}")
    if bad := train.steps[~np.isfinite(train.loss)].tolist():
        notes.append(f"train loss not finite at {len(bad):,} logged steps, first at step {bad[0]:,}")
    return RunRecord(directory, facts, config, overrides, train, validation, tuple(notes))


def _read_facts(directory: RunDirectory, notes: list[str]) -> dict[str, Any]:
    return _read(directory.facts.name, notes, lambda: dict(directory.read_facts())) or {}


def _read(name: str, notes: list[str], read: Callable[[], T]) -> T | None:
    """What `read` returns; None where the file is missing, or damaged, which is noted."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        notes.append(f"{name} cannot be read ({type(error).__name__})")
        return None


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}. Raises TypeError where `content` is no mapping."""
    if not isinstance(content, dict):
        raise TypeError(f"{type(content).__name__} where a mapping was expected")
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _texts(text: str) -> tuple[str, ...]:
    return tuple(str(item) for item in yaml.safe_load(text) or ())


def _gather(rows: Sequence[Row], kind: str, seconds: str) -> Rows:
    """The rows of one kind; where a step occurs twice, the later row counts."""
    found = {
        step: row for row in rows if row.get("kind") == kind and isinstance(step := row.get("step"), int) and step >= 0
    }
    ordered = [found[step] for step in sorted(found)]

    def column(key: str) -> np.ndarray:
        values = (row.get(key) for row in ordered)
        return np.array([float(v) if isinstance(v, (int, float)) else math.nan for v in values], dtype=float)

    return Rows(
        steps=np.array(sorted(found), dtype=np.int64),
        loss=column("loss"),
        lr=column("lr"),
        tokens=column("tokens"),
        seconds=column(seconds),
        stall_seconds=column("checkpoint_stall_seconds"),
        phases=tuple(row.get("phase") for row in ordered),
    )

"""Sweeps and runs as the application leaves them, written in milliseconds: what reports are made of in tests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

LR_MAX, LR_MIN = 2e-4, 2e-5
TOKENS_PER_STEP, STEP_SECONDS = 4096, 0.5
VALIDATION_SECONDS, STALL_SECONDS = 3.0, 0.25


def decay_steps(decay_frac: float, target: int) -> int:
    return max(1, math.floor(target * decay_frac + 1e-9))


def rows(
    decay_frac: float, milestones: Sequence[int], last: int, log_freq: int = 10, spread: float = 0.05
) -> Iterator[dict[str, Any]]:
    """WSDS, as its run would log it, up to step `last`; points of the same past have the same rows."""
    sharpness = 0.0
    for step in range(1, last + 1):
        target = next((m for m in milestones if step <= m), milestones[-1])
        into = step - (target - decay_steps(decay_frac, target))
        progress = into / decay_steps(decay_frac, target)
        lr = LR_MAX - (LR_MAX - LR_MIN) * max(0.0, progress)
        sharpness = 0.0 if into <= 0 else 0.35 * progress * math.sqrt(decay_frac)
        loss = 0.9 + 3.2 * math.exp(-step / 60) + 60 / (step + 60) - sharpness * 0.5
        noise = spread * math.sin(step * 12.9898) * math.cos(step * 78.233)
        if step % log_freq == 0 or step in (1, last) or step in milestones or step - 1 in milestones:
            yield {
                "kind": "train",
                "step": step,
                "loss": loss + noise,
                "lr": lr,
                "phase": "decay" if into > 0 else "stable",
                "tokens": step * TOKENS_PER_STEP,
                "step_seconds": STEP_SECONDS,
                "checkpoint_stall_seconds": STALL_SECONDS,
            }
        if step % 100 == 0 or step in milestones:
            yield {"kind": "validation", "step": step, "loss": loss + 0.03, "seconds": VALIDATION_SECONDS}


def write_run(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    *,
    status: str | None = "finished",
    error: str | None = None,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """A run directory; without run.json where `status` is None, without config.yaml where `config` is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    if status is not None:
        facts = {"run_id": "x", "run_name": folder.name, "status": status, "error": error}
        (folder / "run.json").write_text(json.dumps(facts if step is None else {**facts, "step": step}))
    return folder


def config_of(decay_frac: float, steps: int, **scheduler: Any) -> dict[str, Any]:
    return {
        "optimizer": {"lr": LR_MAX, "betas": [0.9, 0.95]},
        "scheduler": {"lr_max": LR_MAX, "decay_frac": decay_frac, "total_steps": steps, **scheduler},
        "training": {"steps": steps, "seed": 42, "stop_after": None},
        "paths": {"runs": "runs"},
        "run_name": f"run-{decay_frac}",
    }


def write_trunk_sweep(
    root: Path,
    fracs: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    *,
    steps: int = 1000,
    log_freq: int = 10,
    milestones: Sequence[int] = (),
    endings: Mapping[float, tuple[str, int, str | None]] | None = None,
    name: str = "decay_frac-3f2a91bc",
) -> Path:
    """Points that fork where their decays begin: a chain of shared parts with a leaf at each fork.

    `endings`: status, step reached and error of leaves that are not finished; status "" has not started.
    """
    endings = endings or {}
    milestones = (*milestones, steps)
    latest_first = sorted(fracs, reverse=True)
    names = {frac: f"decay_frac={frac:g}" for frac in fracs}
    first = milestones[0]
    edges: list[dict[str, Any]] = []
    start, parent = 0, None
    for i, frac in enumerate(latest_first):
        end = first - decay_steps(frac, first)
        if i < len(latest_first) - 1:
            key = f"steps-{start}-{end}"
            shared = [names[f] for f in latest_first[i:]]
            edges.append(_edge(key, start, end, shared, parent, f"trunk/{key}"))
            lines = rows(latest_first[-1], milestones, end, log_freq)
            config = config_of(latest_first[-1], steps)
            write_run(root / "trunk" / key, list(lines), status="stopped", step=end, config=config)
            start, parent = end, key
        status, reached, error = endings.get(frac, ("finished", steps, None))
        edges.append(_edge(names[frac], start, steps, [names[frac]], parent, names[frac]))
        if status:
            write_run(
                root / names[frac],
                list(rows(frac, milestones, reached, log_freq)),
                status=status,
                error=error,
                step=reached if status in ("finished", "stopped") else None,
                config=config_of(frac, steps),
            )
    manifest = {
        "format": 1,
        "name": name,
        "command": ["hydra/sweeper=trunk", f"scheduler.decay_frac={','.join(f'{f:g}' for f in fracs)}"],
        "created": "2026-11-20T17:00:00",
        "independent_steps": steps * len(fracs),
        "planned_steps": sum(edge["end"] - edge["start"] for edge in edges),
        "points": [
            {"name": names[frac], "overrides": [f"scheduler.decay_frac={frac:g}"], "steps": steps} for frac in fracs
        ],
        "edges": edges,
    }
    (root / "sweep.json").write_text(json.dumps(manifest))
    return root


def _edge(key: str, start: int, end: int, points: Sequence[str], parent: str | None, folder: str) -> dict[str, Any]:
    return {"key": key, "start": start, "end": end, "points": list(points), "parent": parent, "folder": folder}

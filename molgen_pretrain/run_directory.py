"""Every path of a run, its name, and what it says of itself in run.json."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import molgen_pretrain


def new_run_name(description: str) -> str:
    """YYMMDD-HHMM-<4 hex>-<description>. Random: call it on one rank and broadcast."""
    slug = re.sub(r"[^A-Za-z0-9._=,+-]+", "-", description).strip("-.") or "run"
    return f"{datetime.now():%y%m%d-%H%M}-{secrets.token_hex(2)}-{slug}"


@dataclass(frozen=True)
class RunDirectory:
    """The one place that spells the files of a run."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def overrides(self) -> Path:
        return self.root / "overrides.yaml"

    @property
    def facts(self) -> Path:
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    def rank_metrics(self, rank: int) -> Path:
        """Of a rank other than 0, where those are wanted too."""
        return self.root / f"metrics.rank{rank}.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tb"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoint"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    @property
    def profile(self) -> Path:
        """Folder of the steps that were profiled."""
        return self.root / "profile"

    def log(self, rank: int) -> Path:
        return self.root / ("runtime.log" if rank == 0 else f"runtime.rank{rank}.log")

    def hf_export(self, step: int) -> Path:
        return self.root / "hf" / f"step-{step:08d}"

    def write_config(self, resolved_yaml: str, overrides: Sequence[str]) -> None:
        """The resolved config and what the user typed, of the newest start of this run."""
        write_text(self.config, resolved_yaml)
        write_text(self.overrides, "".join(f"- {json.dumps(o)}\n" for o in overrides) or "[]\n")

    def read_facts(self) -> dict[str, Any]:
        """run.json, or an empty dict where there is none."""
        try:
            return json.loads(self.facts.read_text())
        except FileNotFoundError:
            return {}

    def update_facts(self, **values: Any) -> None:
        """Merge `values` into run.json."""
        write_text(self.facts, json.dumps({**self.read_facts(), **values}, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file by one rename, so that a kill leaves the old or the new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def environment_facts() -> dict[str, Any]:
    """Versions, machine and git commit of the program, for run.json."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "hydra-core", "omegaconf")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "versions": {
            "molgen-pretrain": molgen_pretrain.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "host": platform.node(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from, `-dirty` where files differ; None if installed."""
    repo = Path(molgen_pretrain.__file__).resolve().parent.parent
    if not (repo / ".git").exists():
        return None
    command = ["git", "-C", str(repo), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()

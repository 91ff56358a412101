"""Every path of a sweep, and what it says of itself in sweep.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from molgen_pretrain.run_directory import RunDirectory, write_text
from molgen_pretrain.sweep.tree import Edge, Forest

FORMAT = 1


@dataclass(frozen=True)
class SweepDirectory:
    """The one place that spells the files of a sweep."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def manifest(self) -> Path:
        return self.root / "sweep.json"

    @property
    def log(self) -> Path:
        return self.root / "sweep.log"

    @property
    def jobs(self) -> Path:
        """The launcher's folder: scripts, logs, job numbers."""
        return self.root / "jobs"

    def folder(self, edge: Edge) -> str:
        """The run directory of an edge, relative to the sweep's."""
        return edge.key if edge.is_leaf else f"trunk/{edge.key}"

    def run(self, edge: Edge) -> RunDirectory:
        return RunDirectory(self.root / self.folder(edge))

    def read_manifest(self) -> dict[str, Any]:
        """sweep.json, or an empty dict where there is none."""
        try:
            return json.loads(self.manifest.read_text())
        except FileNotFoundError:
            return {}

    def write_manifest(self, forest: Forest, overrides: Mapping[str, Sequence[str]], command: Sequence[str]) -> None:
        """`overrides`: what was typed of each point, by its name. Points of an earlier batch stay in the file."""
        earlier = self.read_manifest()
        steps = {edge.key: edge.end for edge in forest.edges if edge.is_leaf}
        points = [{"name": name, "overrides": list(typed), "steps": steps[name]} for name, typed in overrides.items()]
        edges = [
            {
                "key": edge.key,
                "start": edge.start,
                "end": edge.end,
                "points": list(edge.points),
                "parent": edge.parent,
                "folder": self.folder(edge),
            }
            for edge in forest.edges
        ]
        kept_points = [point for point in earlier.get("points", []) if point["name"] not in overrides]
        kept = {point["name"] for point in kept_points}
        kept_edges = [edge for edge in earlier.get("edges", []) if kept.intersection(edge["points"])]
        kept_keys = {edge["key"] for edge in edges}
        kept_edges = [edge for edge in kept_edges if edge["key"] not in kept_keys]
        content = {
            "format": FORMAT,
            "name": self.name,
            "command": list(command),
            "created": earlier.get("created") or datetime.now().isoformat(timespec="seconds"),
            "independent_steps": forest.independent_steps + sum(point["steps"] for point in kept_points),
            "planned_steps": forest.planned_steps + sum(edge["end"] - edge["start"] for edge in kept_edges),
            "points": kept_points + points,
            "edges": kept_edges + edges,
        }
        write_text(self.manifest, json.dumps(content, indent=2) + "\n")

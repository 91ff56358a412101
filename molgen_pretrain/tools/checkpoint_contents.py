"""What one checkpoint holds: the manifest's facts, the training state and the tensors, from its JSON alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from molgen_pretrain.checkpoint.commit import Manifest, find_problems, read_manifest
from molgen_pretrain.checkpoint.errors import CheckpointDamaged
from molgen_pretrain.checkpoint.layout import OPTIMIZER_FILE, STATE_FILE, TENSORS_FILE
from molgen_pretrain.metrics.formats import format_bytes
from molgen_pretrain.tools.checkpoint_text import make_table
from molgen_pretrain.tools.checkpoint_tree import Leaf, tensor_tree

_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16}  # the others: 8
_LIST_SHOWN = 8


def contents_report(folder: Path, *, tensors: bool) -> Iterator[RenderableType]:
    """Everything about a checkpoint whose documents are sound.

    Raises:
        CheckpointDamaged: its manifest or one of its documents is not.
    """
    manifest = read_manifest(folder)
    documents = {name: _read_document(folder, manifest, name) for name in _documents(manifest)}
    yield Text(str(folder), style="bold")
    yield _facts(manifest)
    yield _files(manifest)
    yield _tree("training state (state.json)", documents[STATE_FILE])
    if OPTIMIZER_FILE in documents:
        yield _groups(documents[OPTIMIZER_FILE]["param_groups"])
    leaves = {name: _leaf(entry) for name, entry in documents[TENSORS_FILE]["tensors"].items()}
    yield _sums(leaves)
    for name, first in documents[TENSORS_FILE]["ties"].items():
        yield Text(f"{name} is {first}")
    if tensors:
        yield tensor_tree(leaves)


def _documents(manifest: Manifest) -> list[str]:
    return [TENSORS_FILE, STATE_FILE] + [OPTIMIZER_FILE] * (OPTIMIZER_FILE in manifest.files)


def _read_document(folder: Path, manifest: Manifest, name: str) -> dict[str, Any]:
    if name not in manifest.files:
        raise CheckpointDamaged(folder, [f"{name}: not in the manifest"])
    if problems := find_problems(folder, manifest, [name]):
        raise CheckpointDamaged(folder, problems)
    return json.loads((folder / name).read_bytes())


def _facts(manifest: Manifest) -> Text:
    finite = {True: "all tensors finite", False: "NaN or infinity in its tensors", None: "not checked to be finite"}
    facts = [
        f"step {manifest.step:,}, saved {manifest.saved_at or 'at an unknown time'}",
        f"world size {manifest.world_size}, torch {manifest.torch_version}",
        *["a milestone"] * manifest.milestone,
        finite[manifest.finite],
        f"format {manifest.format_version}",
    ]
    return Text("; ".join(facts))


def _files(manifest: Manifest) -> RenderableType:
    table = make_table("file", "size", "checksum", right=("size",))
    for name, record in sorted(manifest.files.items()):
        table.add_row(name, format_bytes(record.bytes), f"{record.algorithm} {record.digest}")
    return table


def _tree(title: str, content: Mapping[str, Any]) -> Tree:
    tree = Tree(Text(title, style="bold"))
    _branch(tree, content)
    return tree


def _branch(tree: Tree, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            _branch(tree.add(Text(key)), value)
        else:
            tree.add(Text(f"{key}: {_plain(value)}"))


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        shown = ", ".join(map(_plain, value[:_LIST_SHOWN]))
        return f"[{shown}{f', ... {len(value)} in all' if len(value) > _LIST_SHOWN else ''}]"
    return str(value)


def _groups(groups: list[dict[str, Any]]) -> Tree:
    tree = Tree(Text("parameter groups (optimizer.json)", style="bold"))
    for number, group in enumerate(groups):
        settings = ", ".join(f"{key}={_plain(value)}" for key, value in group.items() if key != "params")
        tree.add(Text(f"group {number}: {len(group['params']):,} parameters; {settings}"))
    return tree


def _leaf(entry: Mapping[str, Any]) -> Leaf:
    elements = math.prod(entry["shape"])
    return Leaf(entry["dtype"], tuple(entry["shape"]), elements, elements * _BITS.get(entry["dtype"], 8) // 8)


def _sums(leaves: Mapping[str, Leaf]) -> Text:
    lines = []
    for prefix, title, unit in (("model.", "model", "parameters"), ("optimizer.", "optimizer state", "numbers")):
        ours = [leaf for name, leaf in leaves.items() if name.startswith(prefix)]
        elements, size = sum(leaf.elements for leaf in ours), format_bytes(sum(leaf.bytes for leaf in ours))
        lines.append(f"{title}: {elements:,} {unit} in {len(ours):,} tensors, {size}")
    return Text("\n".join(lines))

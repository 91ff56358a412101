"""Tensors as a tree of their names, with equal layers shown once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.text import Text
from rich.tree import Tree

from molgen_pretrain.metrics.formats import format_bytes


@dataclass(frozen=True)
class Leaf:
    """A tensor without its data."""

    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype} {format_bytes(self.bytes)}"


Node = dict[str, Any]  # name part -> Node or Leaf


def tensor_tree(leaves: Mapping[str, Leaf]) -> Tree:
    """The tree by the dots of the names; numbered neighbours of one build (layers) appear as one branch."""
    root: Node = {}
    for name, leaf in leaves.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    tree = Tree(Text("tensors", style="bold"))
    _grow(tree, root)
    return tree


def _grow(tree: Tree, node: Node) -> None:
    # Words as they came, then numbers in their order, so that layers are neighbours.
    children = sorted(node.items(), key=lambda item: int(item[0]) if item[0].isdecimal() else -1)
    for first, members in groupby(children, key=_build):
        names = [name for name, _ in members]
        label = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)} alike, each:)"
        _add(tree, label, first.child)


def _add(tree: Tree, label: str, child: Node | Leaf) -> None:
    while isinstance(child, dict) and len(child) == 1:  # a chain of names is one branch
        ((part, child),) = child.items()
        label = f"{label}.{part}"
    if isinstance(child, Leaf):
        tree.add(Text(f"{label}  {child}"))
    elif all(isinstance(part, Leaf) for part in child.values()):
        tree.add(Text(f"{label}  " + "; ".join(f"{name} {leaf}" for name, leaf in child.items())))
    else:
        _grow(tree.add(Text(label)), child)


@dataclass(frozen=True)
class _Build:
    """Compares equal for numbered neighbours that hold the same."""

    word: str | None
    child: Any


def _build(item: tuple[str, Any]) -> _Build:
    name, child = item
    return _Build(None if name.isdecimal() else name, child)

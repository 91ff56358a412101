"""The floors of the house: who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "molgen_pretrain"

GROUND = {"schedules", "data", "model", "parallel", "checkpoint", "metrics", "chem", "launchers", "vocabulary", "titan"}
# For each room: the rooms of this package that it may import (besides itself).
ALLOWED = {
    **{room: set() for room in GROUND},
    "config": GROUND - {"chem"},
    "optim": {"schedules"},
    "training": (GROUND - {"chem", "launchers", "titan"}) | {"config", "optim"},
    "planning": {"model", "metrics", "parallel"},  # arithmetic: of these what loads no torch
    "sweep": GROUND | {"config", "optim"},
    "migration": GROUND | {"config"},
    "tools": GROUND | {"config", "optim", "sweep", "migration", "planning"},  # tools are command lines over the rooms
    "job": GROUND | {"config", "training", "sweep"},
    "__main__": GROUND | {"config", "training", "sweep", "tools", "job"},
}
EVERYWHERE = {"errors", "signals", "run_directory", "run_lock", "__version__"}
MAY_IMPORT_HYDRA = {"config", "__main__", "sweep", "migration", "tools"}
TORCH_FREE = {"config", "schedules", "planning"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def modules() -> list[tuple[str, Path]]:
    pairs = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        pairs.append((parts[0] if len(parts) > 1 else path.stem, path))
    return [(room, path) for room, path in pairs if room not in {"__init__", *EVERYWHERE}]


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(getattr(value, "stem", value)))
def test_imports_go_down_only(room: str, path: Path) -> None:
    assert room in ALLOWED, f"{path}: a new room needs its floor here"
    imported = imports_of(path)
    ours = {name.split(".")[1] for name in imported if name.startswith("molgen_pretrain.")}
    assert ours - {room} - EVERYWHERE <= ALLOWED[room]
    roots = {name.split(".")[0] for name in imported}
    if room not in MAY_IMPORT_HYDRA:
        assert not roots & {"hydra", "omegaconf"}
    if room in TORCH_FREE:
        assert not roots & {"torch", "transformers"}
    if room != "chem":
        assert "rdkit" not in roots


def test_the_rule_finds_an_offence(tmp_path: Path) -> None:
    file = tmp_path / "offender.py"
    file.write_text("from molgen_pretrain.config.schema import RunConfig\nimport hydra\n")
    assert imports_of(file) == {"molgen_pretrain.config.schema", "hydra"}

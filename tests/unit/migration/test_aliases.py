"""Places of a paths.yaml, and references to them."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from molgen_pretrain.errors import UserError
from molgen_pretrain.migration.aliases import Aliases
from molgen_pretrain.migration.paths_file import read_paths

PATHS = Path(__file__).with_name("paths.yaml")


def resolved(aliases: Aliases, reference: str) -> str:
    """The place that a reference comes to once the run is composed."""
    tree = OmegaConf.create({"paths": {"aliases": aliases.tree}, "place": aliases.interpolation(reference)})
    return tree.place


def aliases_of(tmp_path: Path, text: str) -> Aliases:
    path = tmp_path / "paths.yaml"
    path.write_text(text)
    return Aliases(read_paths(path))


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("base_paths:runs_root", "/scratch/runs"),
        ("data:conformers_train/part2/a.jsonl", "/scratch/data/conformers/train/part2/a.jsonl"),
        ("data:conformers_valid", "/scratch/data/conformers/valid"),
        ("data:GEOM/drugs/x", "/geom/DRUGS/x"),
        ("base_paths:qwen3_0.6b_base_model", "/scratch/models/Qwen3-0.6B-Base"),
        ("tokenizers:qwen3_origin", "/scratch/models/Qwen3-0.6B-Base"),
        ("ckpts:run1/step-1000", "/scratch/checkpoints/run1/step-1000"),
        ("models:qwen3_0.6b", "/scratch/models/Qwen3-0.6B-Base"),  # no final step: the last name
        ("models:qwen3_0.6b/500", "/scratch/models/trained/step-500"),
        (" /plain/path ", "/plain/path"),
        ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B-Base"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_references(reference: str, place: str) -> None:
    assert resolved(Aliases(read_paths(PATHS)), reference) == place


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tokenizer:qwen3_custom", "no section tokenizer in .*, did you mean tokenizers"),
        ("tokenizers:qwen3_costum", "no qwen3_costum in tokenizers, did you mean qwen3_custom"),
        ("data:GEOM/qm9", r"no qm9 in data.GEOM"),
        ("data:GEOM", "is no place; legal: drugs"),
    ],
)
def test_references_that_lead_nowhere(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Aliases(read_paths(PATHS)).interpolation(reference)
    with pytest.raises(UserError, match="--paths"):
        Aliases(None).interpolation(reference)


def test_problems_in_the_file_have_lines(tmp_path: Path) -> None:
    text = (
        "data:\n  a: data:b\n  b: data:c/x\n  c: data:a\n  d: data:a\n  e: ckpts:none\n  x.y: /1\n  x_y: /2\nckpts:\n"
    )
    problems = [str(problem) for problem in sorted(aliases_of(tmp_path, text).problems)]
    assert [problem.removeprefix(f"{tmp_path}/paths.yaml:") for problem in problems] == [
        "2: data.a: leads back to itself",
        "3: data.b: leads back to itself",
        "4: data.c: leads back to itself",
        "6: data.e: ckpts:none: no none in ckpts; legal: none",
        "7: data.x.y: is called x_y here, as another one is; rename it",
        "8: data.x_y: is called x_y here, as another one is; rename it",
    ]


def test_of_several_places_the_first_that_exists(tmp_path: Path) -> None:
    aliases = aliases_of(tmp_path, f"ckpts:\n  run: [/nowhere, {tmp_path}]\n")
    assert resolved(aliases, "ckpts:run/step-1") == f"{tmp_path}/step-1"
    assert "ckpts.run lists places" in aliases.notes[0]


def test_relative_places(tmp_path: Path) -> None:
    """Those of data were looked for below a root; others depend on the folder, which is pointed out."""
    text = "base_paths: {data_root: /d, geom_data_root: /g}\ndata: {big: x, conformers_train: y}\nckpts: {run: z}\n"
    aliases = aliases_of(tmp_path, text)
    assert [resolved(aliases, f"data:{name}") for name in ("big", "conformers_train")] == ["/d/x", "/g/y"]
    assert aliases.notes == []
    assert resolved(aliases, "ckpts:run") == "z"
    assert "ckpts.run is relative" in aliases.notes[0]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must hold maps of places"):
        aliases_of(tmp_path, "data: /a\n")
    with pytest.raises(UserError, match=r"paths.yaml:3: is not valid YAML"):
        aliases_of(tmp_path, "data:\n  a: [1\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_paths(tmp_path / "missing.yaml")

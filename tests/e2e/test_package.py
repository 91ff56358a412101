"""What a user gets who installs the wheel and has no checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files as pip lays them out; what they depend on is in this environment already."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(REPO)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "molgen_pretrain/conf/experiment/qwen3_0_6b.yaml" in names
    assert "molgen_pretrain/sample/tokenizer/tokenizer.json" in names
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "scripts")) or n.endswith(".pyc")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return site


def test_trains_from_an_empty_directory(installed: Path, app, tiny) -> None:
    short = (*tiny, "training.steps=2", "scheduler.checkpoints=[2]", "data.num_workers=1", "run_name=from-wheel")
    _, run = app.run(*short, PYTHONPATH=str(installed), PYTHONSAFEPATH="1")
    assert run.facts["status"] == "finished"
    assert run.facts["git_commit"] is None  # it ran from the wheel, not from the checkout
    assert str(installed / "molgen_pretrain" / "sample") in (run.root / "config.yaml").read_text()
    assert sorted(p.name for p in app.folder.iterdir()) == ["runs"]

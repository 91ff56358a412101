"""The plan tool, in process: what it prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.store import conf_dir
from molgen_pretrain.model.flops import causal_pairs
from molgen_pretrain.model.parameters import count
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, count_parameters
from molgen_pretrain.tools.data import main as data_tool
from molgen_pretrain.tools.plan import main
from molgen_pretrain.tools.plan_data import totals

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLGEN_CACHE", str(tmp_path / "cache"))
    for name in ("RUN_NAME", "WANDB_RUN_NAME", "WORLD_SIZE", "MOLGEN_DATA", "MOLGEN_TRAIN"):
        monkeypatch.delenv(name, raising=False)


Plan = Callable[..., str]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    def run(*arguments: str, code: int = 0) -> str:
        assert main(arguments) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_every_model_choice_are_exact(model: str, tied: bool) -> None:
    cfg = compose_run([f"model={model}", f"model.tie_word_embeddings={str(tied).lower()}"])
    meta = build_on_meta(Qwen3Arch(**cfg.model.sizes()).hf_config(eos_token_id=0, pad_token_id=0))
    counted = count(cfg.model)
    assert counted.total == count_parameters(meta)
    assert counted.block == count_parameters(meta.model.layers[0])
    assert counted.embedding == count_parameters(meta.model.embed_tokens)
    assert counted.head == (0 if tied else count_parameters(meta.lm_head))


def test_the_published_size_on_one_gpu(plan: Plan) -> None:
    """An H200 trained this with 41.6 GiB at its highest (torch 2.11; FSDP2 over one rank, not compiled)."""
    settings = ("model.fused_ops=false", "parallelism.compile=false", "model.loss_kernel=checkpointed")
    settings += ("model.loss_chunk_tokens=2048", "--json")
    figures = json.loads(plan("+experiment=qwen3_0_6b", *settings))
    assert figures["parameters"]["total"] == 596_049_920
    assert figures["peak_bytes"] / 2**30 == pytest.approx(41.6, rel=0.05)
    assert figures["largest_local_batch_size"] > 8


def test_the_report(plan: Plan) -> None:
    output = plan("+experiment=qwen3_0_6b", "--world-size", "8", "--gpus", "8,64,1024", "--tokens-per-epoch", "1e10")
    assert "596,049,920 parameters" in output
    for words in ("optimizer state", "loss workspace", "training.local_batch_size up to", "an epoch: 10.0B tokens"):
        assert words in output
    rows = [line.split() for line in output.splitlines()]
    assert {row[0] for row in rows if row and row[0] in ("8", "64", "1,024")} == {"8", "64", "1,024"}
    assert "communication takes longer than computation: at a fixed local batch" in output


def test_a_cpu_has_memory_but_no_hours(plan: Plan) -> None:
    figures = json.loads(plan("--gpu", "cpu", "--json"))
    assert figures["run"] is None
    assert figures["limit_bytes"] is None
    assert "of them the process itself" in plan("training.device=cpu")


def test_an_epoch_comes_from_the_cache_where_it_is(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --tokens-per-epoch" in plan()
    assert data_tool(["stats", "--json", "stats.json"]) == 0
    capsys.readouterr()
    stats = json.loads(Path("stats.json").read_text())["together"]
    whole, documents = (json.loads(plan(f"data.document_mask={mask}", "--json"))["data"] for mask in ("false", "true"))
    lengths = {int(length): units for length, units in stats["units_of_length"].items()}
    assert whole["tokens"] == sum((length + 1) * units for length, units in lengths.items())
    packed = stats["packing"][0]
    assert whole["sequences"] == pytest.approx(packed["sequences"] * packed["fill"], rel=0.01)
    assert documents["pairs_per_token"] < whole["pairs_per_token"] == causal_pairs(1024) / 1024


def test_units_that_are_too_long_count_as_truncated() -> None:
    assert totals({3: 2, 99: 1}, seq_len=10) == (2 * 4 + 10, 2 * causal_pairs(4) + causal_pairs(10))


def test_what_is_mistyped_is_named(plan: Plan) -> None:
    assert "error: --gpu=h201: is not known; known: cpu, a100" in plan("--gpu", "h201", code=1)
    assert "error: --mfu=50: must be above 0 and at most 1" in plan("--mfu", "50", code=1)
    assert "error: --gpus=8,x: must be numbers" in plan("--gpus", "8,x", code=1)
    assert "error: --network-gbs=-1: must be positive" in plan("--network-gbs", "-1", code=1)
    assert "training.stepz: unknown key" in plan("training.stepz=3", code=1)
    assert "use parallelism=fsdp" in plan("--world-size", "2", code=1)


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, molgen_pretrain.tools.plan as tool;"
        "tool.main(['model.loss_chunk_tokens=512', '--json']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0

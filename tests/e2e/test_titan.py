"""TorchTitan 0.3.0 itself writes the checkpoints that come in, and goes on from those that go out."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.tools import export_titan, import_titan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("torchtitan") is None, reason="torchtitan is not installed"),
]

SIZES = {"dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 64}
ROWS, LENGTH, BATCH, LR = 384, 24, 4, 3e-3
TOKENIZER = Path(__file__).resolve().parents[2] / "molgen_pretrain" / "sample" / "tokenizer"
SEQUENCES = torch.randint(ROWS, (3 * BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Variant:
    tied: bool
    fused: bool
    processes: int


# A head of its own, three projections; and what TorchTitan does by default, sharded.
VARIANTS = [Variant(tied=False, fused=False, processes=1), Variant(tied=True, fused=True, processes=2)]


def train(dump: Path, variant: Variant, *, steps: int, first: int = 0) -> Path:
    """Up to `steps`, from the newest checkpoint in `dump` or from scratch; returns the checkpoints' folder."""
    options = {
        "dump": str(dump),
        "tied": variant.tied,
        "fused": variant.fused,
        "steps": steps,
        "first": first * BATCH,
        "batch": BATCH,
        "lr": LR,
        "sizes": SIZES,
        "vocab_size": ROWS,
        "sequences": SEQUENCES.tolist(),
        "tokenizer": str(TOKENIZER),
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={variant.processes}"]
    script = Path(__file__).with_name("titan_process.py")
    result = subprocess.run(
        [*launch, str(script), json.dumps(options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (dump / "logits.safetensors").exists(), result.stdout + result.stderr
    return dump / "checkpoint"


@pytest.fixture(scope="module", params=VARIANTS, ids=["untied, separate, 1 process", "tied, fused, 2 processes"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Variant, Path]:
    """A run of three steps with a checkpoint after each."""
    dump = tmp_path_factory.mktemp("titan")
    train(dump, request.param, steps=3)
    return request.param, dump


def run(tool: object, *words: object) -> None:
    assert tool.main([str(word) for word in words]) == 0


def weights_of(step: Path, out: Path) -> dict[str, Tensor]:
    run(import_titan, step, out)
    return load_file(out / "model.safetensors")


def test_imported_weights_give_the_logits_of_titan(trained: tuple[Variant, Path], tmp_path: Path) -> None:
    variant, dump = trained
    run(import_titan, dump / "checkpoint" / "step-3", tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert model.config.tie_word_embeddings == variant.tied
    with torch.no_grad():
        logits = model(SEQUENCES[:1, :-1]).logits
    expected = load_file(dump / "logits.safetensors")["logits"]
    assert logits.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_our_next_step_is_that_of_titan(trained: tuple[Variant, Path], tmp_path: Path) -> None:
    """Weights and AdamW's state of step 2, the same batch: the weights of step 3."""
    variant, dump = trained
    run(import_titan, dump / "checkpoint" / "step-2", tmp_path / "run", "--resume")
    config = Qwen3Arch(
        vocab_size=ROWS,
        hidden_size=SIZES["dim"],
        num_hidden_layers=SIZES["n_layers"],
        num_attention_heads=SIZES["n_heads"],
        num_key_value_heads=SIZES["n_kv_heads"],
        head_dim=SIZES["head_dim"],
        intermediate_size=SIZES["hidden_dim"],
        tie_word_embeddings=variant.tied,
    ).hf_config(eos_token_id=0, pad_token_id=0)
    config.pad_token_id = None  # TorchTitan trains the embedding of every token
    model = build_on_meta(config)
    materialize(model, device=torch.device("cpu"), seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    state = Checkpointer(tmp_path / "run" / "checkpoint", keep_latest_k=0).load(2, model=model, optimizer=optimizer)
    assert state["progress"]["step"] == 2
    assert state["progress"]["tokens"] == 2 * BATCH * LENGTH * variant.processes

    batch = SEQUENCES[2 * BATCH : 3 * BATCH]
    sums = model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    (sums.total / (BATCH * LENGTH)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    before = weights_of(dump / "checkpoint" / "step-2", tmp_path / "two")
    after = weights_of(dump / "checkpoint" / "step-3", tmp_path / "three")
    for name, parameter in model.named_parameters():
        moved = (after[name] - before[name]).abs().max()
        assert moved > 1e-4, f"{name} did not move: nothing is compared"
        torch.testing.assert_close(
            parameter.detach(), after[name], atol=2e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_titan_goes_on_from_our_export_as_if_nothing_had_been(trained: tuple[Variant, Path], tmp_path: Path) -> None:
    variant, dump = trained
    run(import_titan, dump / "checkpoint" / "step-2", tmp_path / "run", "--resume")
    separate = [] if variant.fused else ["--separate-qkv"]
    back = tmp_path / "titan" / "checkpoint" / "step-2"
    back.parent.mkdir(parents=True)
    run(export_titan, tmp_path / "run", back, "--resume", "--data-ranks", variant.processes, *separate)
    train(tmp_path / "titan", variant, steps=3, first=2)
    # Weights, moments, step and tokens, through our reader; the files differ in the names of their run.
    for step in (2, 3):
        for folder in (dump, tmp_path / "titan"):
            run(import_titan, folder / "checkpoint" / f"step-{step}", tmp_path / f"{folder.name}-{step}", "--resume")
        original, ours = (
            load_file(tmp_path / f"{name}-{step}" / "checkpoint" / f"step-{step:08d}" / "rank-00000.safetensors")
            for name in (dump.name, "titan")
        )
        assert original.keys() == ours.keys()
        assert not [name for name in original if not torch.equal(original[name], ours[name])]
    tokens = [
        json.loads((tmp_path / f"{name}-3" / "checkpoint" / "step-00000003" / "state.json").read_text())["progress"]
        for name in (dump.name, "titan")
    ]
    assert tokens[0]["step"] == tokens[1]["step"] == 3
    # Without the data loaders' state TorchTitan knows as many ranks as before.
    assert tokens[0] == tokens[1]

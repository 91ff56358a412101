"""Whole runs from Hugging Face weights, and from the weights of other runs, to an export."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.tools import export, tokenizer
from molgen_pretrain.vocabulary.compaction import read_compaction

SHARED = Path(__file__).resolve().parents[3] / "shared" / "tokenizers"
EMBEDDING = "model.embed_tokens.weight"
# An export before the first step, and nothing else that takes time.
AT_ONCE = (
    "training.stop_after=0",
    "checkpoint.hf_export=every",
    "validation.enable=false",
    f"data.train_path={SAMPLE_DIR / 'valid'}",
)
MakeSnapshot = Callable[..., Path]


@pytest.fixture
def snapshot(tmp_path: Path) -> MakeSnapshot:
    """`snapshot(tokenizer, rows=...)`: the folder of a random Qwen3 of TINY's sizes, as transformers writes it."""

    def make(tokenizer_dir: Path, *, rows: int = 384, tied: bool = True) -> Path:
        torch.manual_seed(1)
        config = Qwen3Config(
            vocab_size=rows,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=64,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        folder = tmp_path / "snapshot"
        Qwen3ForCausalLM(config).save_pretrained(folder)
        shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return folder

    return make


@pytest.fixture
def qwen3() -> Callable[[str], Path]:
    if not SHARED.is_dir():
        pytest.skip("the shared folder with Qwen3's tokenizers is not here")
    return lambda name: SHARED / f"qwen3_{name}"


def hf(folder: Path | str) -> tuple[str, ...]:
    return ("init=hf_pretrain", f"init.from={folder}")


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def bits(values: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in values.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_no_step_changes_no_bit(faulty, tiny, snapshot: MakeSnapshot, tied: bool) -> None:
    folder = snapshot(SAMPLE_DIR / "tokenizer", tied=tied)
    sizes = (f"model.tie_word_embeddings={tied}", "checkpoint.hf_export_shard_size=30KB")
    _, run = faulty.run(*tiny, *AT_ONCE, *hf(folder.name), *sizes)  # where it is started
    exported = run.root / "hf" / "step-00000000"
    assert len(list(exported.glob("*.safetensors"))) > 1
    assert bits(weights(exported)) == bits(weights(folder))
    card = (exported / "README.md").read_text()
    assert "hf_pretrain from" in card
    assert export.main([str(run.root), str(run.root / "later"), "--dtype", "float32"]) == 0
    assert bits(weights(run.root / "later")) == bits(weights(folder))


def test_added_tokens_are_new_and_nothing_else(faulty, tiny, snapshot: MakeSnapshot, qwen3) -> None:
    folder = snapshot(qwen3("origin"), rows=151_936)
    settings = (*hf(folder), f"data.tokenizer={qwen3('custom')}", "data.embedding_rows=151936")
    found = {}
    for ranks, layout in ((0, ()), (2, ("parallelism=fsdp",))):
        output, run = faulty.run(*tiny, *AT_ONCE, *settings, *layout, f"run_name=on-{ranks}", ranks=ranks)
        assert "new rows (init.new_tokens=normal): 151669-151672" in output
        found[ranks] = weights(run.root / "hf" / "step-00000000")
    assert bits(found[0]) == bits(found[2])
    before = weights(folder)
    changed = (found[0][EMBEDDING] != before[EMBEDDING]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [151_669, 151_670, 151_671, 151_672]
    rows = found[0].pop(EMBEDDING)[changed]
    # 128 values of a normal distribution: 4 standard errors of mean and deviation.
    assert abs(rows.mean()) < 4 * 32**-0.5 / 128**0.5
    assert rows.std() == pytest.approx(32**-0.5, rel=4 / 256**0.5)
    assert bits(found[0]) == {name: value for name, value in bits(before).items() if name != EMBEDDING}


def test_a_compact_tokenizer_leaves_the_logits(faulty, tiny, snapshot: MakeSnapshot, qwen3, tmp_path: Path) -> None:
    folder, compact = snapshot(qwen3("custom"), rows=151_936), tmp_path / "compact"
    words = ["compact", str(qwen3("custom")), "--data", str(SAMPLE_DIR / "valid"), "--out", str(compact)]
    assert tokenizer.main([*words, "--processes", "1"]) == 0
    record = read_compaction(compact)
    sizes = (f"data.tokenizer={compact}", f"data.embedding_rows={record.padded_rows}")
    _, run = faulty.run(*tiny, *AT_ONCE, *hf(folder), *sizes)
    small = AutoModelForCausalLM.from_pretrained(run.root / "hf" / "step-00000000")
    assert small.config.vocab_size == record.padded_rows < 1000
    kept = torch.tensor(record.kept_ids)
    ids = torch.randint(len(kept), (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = AutoModelForCausalLM.from_pretrained(folder)(kept[ids]).logits[..., kept]
        assert full.abs().max() > 1
        torch.testing.assert_close(small(ids).logits[..., : len(kept)], full, atol=1e-5, rtol=0)


def test_a_killed_run_goes_on_without_its_snapshot(faulty, tiny, snapshot: MakeSnapshot) -> None:
    folder = snapshot(SAMPLE_DIR / "tokenizer")
    short = (*tiny, "training.steps=20", "scheduler.checkpoints=[20]", *hf(folder), "init.new_tokens=mean")
    _, whole = faulty.run(*short, "run_name=whole")
    kill = ("at", {"step": 12, "phase": "forward", "action": "signalled", "number": signal.SIGKILL})
    faulty.run(*short, "run_name=killed", faults=[kill], code=-signal.SIGKILL)
    shutil.rmtree(folder)
    output, run = faulty.run(*short, "run_name=killed")
    assert "start: after step 8" in output
    assert run.curve("loss", "grad_norm") == whole.curve("loss", "grad_norm")
    assert bits(weights(run.root / "hf" / "step-00000020")) == bits(weights(whole.root / "hf" / "step-00000020"))


def test_the_weights_alone_of_another_run(faulty, tiny, whole) -> None:
    """Another optimizer and schedule, step 0, the data from the start; from a run and from a step of it."""
    _, source = whole
    step = source.root / "checkpoint" / "step-00000040"
    expected = {name: value.bfloat16() for name, value in weights(source.root / "hf" / "step-00000040").items()}
    plan = ("training.steps=2", "scheduler.checkpoints=[2]", "optimizer=sgd", "validation.enable=false")
    resume = (*plan, "init=resume", "init.model_only=true", "checkpoint.hf_export_dtype=bfloat16")
    for name, place in {"run": os.path.relpath(source.root, faulty.app.folder), "step": step}.items():
        options = (*tiny, *resume, "checkpoint.hf_export=every", f"init.from={place}", f"run_name={name}")
        output, run = faulty.run(*options, "training.stop_after=0")
        assert re.search(rf"start: step 0 with the weights of .*{source.root.name}/checkpoint/step-00000040\n", output)
        exported = weights(run.root / "hf" / "step-00000000")
        assert exported.keys() == expected.keys()
        assert all(torch.equal(exported[name], value) for name, value in expected.items())
    output, run = faulty.run(*options)
    assert "start: after step 0 of" in output
    assert run.curve("tokens", "epoch") == {s: v for s, v in source.curve("tokens", "epoch").items() if s <= 2}
    assert run.rows()[1]["loss"] < source.rows()[1]["loss"] - 1

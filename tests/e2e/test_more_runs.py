"""Runs that differ from the usual one: other precision, workers, real data, wandb."""

import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"
EXACT = ("loss", "grad_norm", "tokens", "epoch")


def test_bfloat16_resumes_bit_for_bit_with_a_data_worker(app, tiny) -> None:
    options = (*tiny, "training.dtype=bfloat16", "validation.enable=false")
    _, whole = app.run(*options, "run_name=whole")
    after, name = 17, ("run_name=killed", "data.num_workers=2")
    app.interrupt(*options, *name, after_step=after, by=signal.SIGKILL)
    _, killed = app.run(*options, *name)
    assert killed.curve(*EXACT) == whole.curve(*EXACT)


def test_finite_data_ends_the_run_early_and_in_order(app, tiny) -> None:
    output, run = app.run(*tiny, "data.infinite=false", f"data.train_path={_few_lines(app.folder)}", "run_name=finite")
    assert "the data ended after step" in output
    last = max(run.rows())
    assert 1 <= last < 40
    assert run.steps_saved()[-1] == last
    assert run.facts["status"] == "finished"
    assert (run.root / "hf" / f"step-{last:08d}" / "model.safetensors").exists()


def test_wandb_offline_continues_the_same_run(app, tiny) -> None:
    short = (*tiny, "training.steps=2", "scheduler.checkpoints=[2]", "validation.enable=false", "metrics.wandb=offline")
    app.run(*short, WANDB_RUN_NAME="named-by-wandb", WANDB_PROJECT="p")
    longer = [o.replace("steps=2", "steps=3").replace("[2]", "[3]") for o in short]
    _, run = app.run(*longer, "scheduler.on_resume=override", WANDB_RUN_NAME="named-by-wandb")
    assert run.root.name == "named-by-wandb"
    assert list(run.rows()) == [1, 2, 3]
    offline = [p.name for p in (run.root / "wandb").glob("offline-run-*")]
    assert len(offline) == 2
    assert {name.rsplit("-", 1)[1] for name in offline} == {run.facts["wandb_id"]}


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data beside the checkout")
def test_real_conformers_with_the_full_qwen3_vocabulary(app, tiny) -> None:
    paths = {
        "MOLGEN_DATA": str(SHARED / "data"),
        "MOLGEN_TOKENIZER": str(SHARED / "tokenizers" / "qwen3_custom"),
    }
    options = ("data=conformers", "training.steps=2", "scheduler.checkpoints=[2]", "training.global_batch_size=-1")
    output, run = app.run(*tiny, *options, "validation.steps=1", **paths)
    assert "25,573 units" in output
    assert run.rows()[1]["loss"] == pytest.approx(11.93, abs=0.1)  # ln(151936): nothing is known yet


def _few_lines(folder: Path) -> Path:
    from molgen_pretrain.config.schema import SAMPLE_DIR

    lines = (SAMPLE_DIR / "train" / "train_0.jsonl").read_bytes().splitlines(keepends=True)
    path = folder / "few.jsonl"
    path.write_bytes(b"".join(lines[:40]))
    return path

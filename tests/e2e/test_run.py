"""What a finished run leaves behind, and what it says."""

import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from molgen_pretrain.schedules import schedule_from_state


def test_run_directory(whole) -> None:
    _, run = whole
    assert re.fullmatch(r"\d{6}-\d{4}-[0-9a-f]{4}-pretrain", run.root.name)
    names = {p.name for p in run.root.iterdir()}
    assert names == {
        "config.yaml", "overrides.yaml", "run.json", "runtime.log", "metrics.jsonl", "tb",
        "checkpoint", "hf", "curves.png", "profile", ".lock",
    }  # fmt: skip
    assert run.facts["status"] == "finished"
    assert run.facts["step"] == 40
    assert run.facts["run_name"] == run.root.name
    assert run.facts["versions"]["torch"] == torch.__version__
    config = yaml.safe_load((run.root / "config.yaml").read_text())
    assert config["scheduler"]["total_steps"] == 40  # resolved
    overrides = yaml.safe_load((run.root / "overrides.yaml").read_text())
    assert "training.steps=40" in overrides
    assert (run.root / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((run.root / "tb").iterdir())


def test_checkpoints_kept_are_the_newest_and_the_milestones(whole) -> None:
    _, run = whole
    assert run.steps_saved() == [20, 32, 40]


def test_every_step_is_logged_with_the_schedules_values(whole) -> None:
    _, run = whole
    state = next((run.root / "checkpoint" / "step-00000040").glob("state.json"))
    schedule = schedule_from_state(yaml.safe_load(state.read_text())["schedule"])
    rows = run.rows()
    assert list(rows) == list(range(1, 41))
    for step, row in rows.items():
        assert row["lr"] == schedule.lr(step)
        assert row["weight_decay"] == schedule.weight_decay(step)
        assert row["phase"] == schedule.phase(step).value
        assert 0 <= row["padding_frac"] < 1
        assert row["sequences"] == 8 * step
    assert rows[20]["lr"] == rows[40]["lr"] == schedule.lr_min
    assert rows[21]["lr"] == schedule.lr_max


def test_where_the_time_of_two_steps_went(whole) -> None:
    output, run = whole
    table = (run.root / "profile" / "steps-3-4.txt").read_text()
    assert table.startswith("Profile of steps 3 to 4 on CPU")
    shares = {
        name: float(share) for name, share in re.findall(r"^  ([a-z ,-]+?) +[\d.]+ +([\d.]+)%$", table, re.MULTILINE)
    }
    assert shares.pop("total") == 100
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert shares["matmul"] > 5
    assert "steps-3-4.json.gz" in output


def test_the_model_learns(whole) -> None:
    _, run = whole
    rows, validation = run.rows(), run.rows("validation")
    assert list(validation) == [20, 40]
    assert rows[40]["loss"] < rows[1]["loss"] - 1.5
    assert validation[40]["loss"] < validation[20]["loss"]
    assert validation[40]["loss"] == pytest.approx(rows[40]["loss"], abs=0.3)


def test_terminal_and_log_tell_the_story(whole) -> None:
    output, run = whole
    for part in ("schedule: wsds", "train data:", "run directory:", "model: Qwen3", "first sequence: [SMILES]",
                 "step 40/40", "validation loss", "unigram entropy", "Milestones", str(run.root)):  # fmt: skip
        assert part in output, part
        assert part in run.log, part


def test_export_generates_with_the_three_lines_of_the_readme(whole) -> None:
    _, run = whole
    for step in (20, 40):
        folder = run.root / "hf" / f"step-{step:08d}"
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = model.generate(**tokenizer("[SMILES]", return_tensors="pt"), max_new_tokens=20)
        assert tokenizer.decode(ids[0]).startswith("[SMILES]")
        assert model.dtype is torch.float32


def test_exported_model_scores_the_validation_split_as_the_run_did(whole, cache) -> None:
    """The loss in metrics.jsonl, computed again by transformers alone from the exported folder."""
    from molgen_pretrain.config.schema import SAMPLE_DIR
    from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
    from molgen_pretrain.data.tokenizer import UnitTokenizer

    _, run = whole
    model = AutoModelForCausalLM.from_pretrained(run.root / "hf" / "step-00000040").eval()
    split = JsonlTaggedPackedDataset(
        paths=SAMPLE_DIR / "valid",
        tokenizer=UnitTokenizer.load(SAMPLE_DIR / "tokenizer"),
        seq_len=128,
        local_batch_size=4,
        cache_dir=cache,
        shuffle_lines=False,
        infinite=False,
        last_batch="pad",
    )
    loss_sum, tokens = 0.0, 0
    with torch.no_grad():
        for _, batch in zip(range(2), split, strict=False):
            logits = model(input_ids=batch.input_ids).logits.double()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
            loss_sum += float(loss)
            tokens += int((batch.labels != -100).sum())
    row = run.rows("validation")[40]
    assert row["tokens"] == tokens
    assert row["loss"] == pytest.approx(loss_sum / tokens, rel=1e-5)

"""What init=hf_pretrain finds out before torch loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.hf_start import HfStart
from molgen_pretrain.config.preflight import preflight
from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import tensor_shapes
from molgen_pretrain.tools import tokenizer

SMALL = ("model.hidden_size=8", "model.num_hidden_layers=1", "model.intermediate_size=8", "model.head_dim=4")
Find = Callable[..., HfStart]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A Qwen3 of SMALL's sizes with the sample's tokenizer of 354 tokens."""
    sizes = compose_run(SMALL).model.sizes()
    folder = Path(shutil.copytree(SAMPLE_DIR / "tokenizer", tmp_path / "snapshot"))
    shapes = tensor_shapes(sizes)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes}))
    return folder


@pytest.fixture
def find(tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> Find:
    monkeypatch.delenv("RUN_NAME", raising=False)
    monkeypatch.delenv("WANDB_RUN_NAME", raising=False)

    def run(*overrides: str) -> HfStart | None:
        given = [*SMALL, f"paths.runs={tmp_path}", "init=hf_pretrain", f"init.from={snapshot}", *overrides]
        return preflight(compose_run(given)).hf_start

    return run


def changed_tokenizer(folder: Path, **ids: int) -> Path:
    """The sample's tokenizer, with some learned tokens given other ids."""
    shutil.copytree(SAMPLE_DIR / "tokenizer", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"].update(ids)
    Tokenizer.from_str(json.dumps(content)).save(str(folder / "tokenizer.json"))
    return folder


def test_the_same_tokenizer_and_one_with_tokens_added(find: Find, tmp_path: Path) -> None:
    same = find()
    assert (same.base_tokens, same.tokens, same.old_ids) == (354, 354, None)
    words = ["extend", str(SAMPLE_DIR / "tokenizer"), "--tokens", "<new>", "--out", str(tmp_path / "more")]
    assert tokenizer.main(words) == 0
    more = find(f"data.tokenizer={tmp_path / 'more'}")
    assert (more.base_tokens, more.tokens, more.old_ids) == (354, 355, None)


def test_a_compact_tokenizer_is_found_by_text(find: Find, snapshot: Path, tmp_path: Path) -> None:
    data = tmp_path / "two.jsonl"
    data.write_text("".join((SAMPLE_DIR / "valid" / "valid_0.jsonl").read_text().splitlines(keepends=True)[:2]))
    out = tmp_path / "compact"
    words = ["compact", str(snapshot), "--data", str(data), "--out", str(out), "--processes", "1"]
    assert tokenizer.main(words) == 0
    compact = find(f"data.tokenizer={out}")
    kept = json.loads((out / "compaction.json").read_text())["kept_ids"]
    assert compact.tokens == len(kept) < 354
    assert compact.old_ids == kept
    # Rows behind the last token are taken over only where the ids are the same.
    shutil.copytree(out, snapshot, dirs_exist_ok=True)
    assert find(f"data.tokenizer={out}").old_ids is None


def test_mistakes_come_together(find: Find, snapshot: Path, tmp_path: Path) -> None:
    other = changed_tokenizer(tmp_path / "other", a=66, b=65)
    with pytest.raises(UserError) as caught:
        find("model.hidden_size=16", "model.rope_theta=5", f"data.tokenizer={other}", "data.valid_path=nowhere")
    message = str(caught.value)
    for part in (
        "data.valid_path=nowhere",
        "model.hidden_size=16: the snapshot of init.from has 8",
        "model.hidden_size=8 model.rope_theta=1000000.0",
        f"data.tokenizer={other}: 2 of its ids mean other texts",
        "65 is 'b' instead of 'a', 66 is 'a' instead of 'b'",
    ):
        assert part in message, message


def test_a_snapshot_without_a_tokenizer_needs_one(find: Find, snapshot: Path) -> None:
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"init\.from=.*: has no tokenizer\.json.*give init\.tokenizer=DIR"):
        find()
    assert find(f"init.tokenizer={SAMPLE_DIR / 'tokenizer'}").base_tokens == 354


@pytest.mark.parametrize("init", ["hf_pretrain", "resume"])
def test_a_run_with_checkpoints_needs_no_source(find: Find, tmp_path: Path, init: str) -> None:
    gone = ("run_name=mine", f"init={init}", f"init.from={tmp_path / 'gone'}")
    with pytest.raises(UserError, match="gone: no such folder"):
        find(*gone)
    step = tmp_path / "mine" / "checkpoint" / "step-00000004"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    assert find(*gone) is None

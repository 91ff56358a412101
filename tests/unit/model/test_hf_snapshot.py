"""What is taken for a Qwen3 snapshot, what is refused and why, and where one is looked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import size_problems, tensor_shapes
from molgen_pretrain.model.hf_snapshot import Snapshot, resolve

MakeSnapshot = Callable[..., tuple[Path, Qwen3ForCausalLM]]


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; `...` removes one."""
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors; __ stands for a dot."""
    file = folder / "model.safetensors"
    content = {**load_file(file), **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in content.items() if value is not None}, file)


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_and_sizes_are_those_of_transformers(make_snapshot: MakeSnapshot, tied: bool) -> None:
    folder, model = make_snapshot(tie_word_embeddings=tied)
    sizes = Snapshot.open(folder).sizes
    assert tensor_shapes(sizes) == {name: tuple(value.shape) for name, value in model.named_parameters()}
    rope_theta = sizes["rope_theta"]
    assert rope_theta == 500_000
    assert all(getattr(model.config, name) == value for name, value in sizes.items() if name != "rope_theta")


def test_older_spellings_of_the_rotary_base_are_read(make_snapshot: MakeSnapshot) -> None:
    folder, _ = make_snapshot()
    edit_config(folder, rope_parameters=..., rope_theta=7e5, rope_scaling=None)
    assert Snapshot.open(folder).sizes["rope_theta"] == 7e5
    edit_config(folder, rope_scaling={"type": "yarn", "factor": 4.0})
    with pytest.raises(UserError, match='rope_type is "yarn"'):
        Snapshot.open(folder)


def test_any_part_is_read_by_itself(make_snapshot: MakeSnapshot) -> None:
    folder, model = make_snapshot(dtype=torch.bfloat16, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    part = Snapshot.open(folder).read("model.layers.1.mlp.down_proj.weight", (slice(3, 9), slice(10, 40)))
    assert torch.equal(part, model.model.layers[1].mlp.down_proj.weight[3:9, 10:40])


def test_a_tied_head_may_be_stored_and_a_decoder_may_stand_alone(make_snapshot: MakeSnapshot) -> None:
    folder, model = make_snapshot()
    edit_tensors(folder, lm_head__weight=model.model.embed_tokens.weight.detach().clone())
    assert Snapshot.open(folder).rows == 61
    model.model.save_pretrained(folder)  # names without "model.", as of embedding models
    assert Snapshot.open(folder).rows == 61


def test_sizes_that_differ_are_named(make_snapshot: MakeSnapshot) -> None:
    theirs = Snapshot.open(make_snapshot()[0]).sizes
    assert size_problems({**theirs, "vocab_size": 64, "max_position_embeddings": 7}, theirs) == []
    problems = size_problems({**theirs, "hidden_size": 64, "rope_theta": 1e6, "tie_word_embeddings": False}, theirs)
    assert [line.partition(";")[0] for line in problems] == [
        "model.hidden_size=64: the snapshot of init.from has 32",
        "model.tie_word_embeddings=False: the snapshot of init.from has True",
        "model.rope_theta=1000000.0: the snapshot of init.from has 500000.0",
    ]


REFUSED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "another architecture": (
        lambda folder: edit_config(folder, model_type="llama", attention_bias=True, auto_map={"AutoModel": "x.Y"}),
        ['model_type is "llama", only "qwen3"', "attention_bias is true, only false"],
    ),
    "no sizes": (lambda folder: edit_config(folder, hidden_size=...), ["hidden_size is null, no number"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["cannot read config.json: No such file"]),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ["config.json is not valid JSON"]),
    "only pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ["pytorch_model.bin, a pickle", "save_pretrained"],
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["neither model.safetensors nor"]),
    "cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-4]),
        ["model.safetensors cannot be read"],
    ),
    "other tensors": (
        lambda folder: edit_tensors(
            folder,
            model__norm__weight=None,
            model__norm__bias=torch.zeros(32),
            model__layers__0__mlp__up_proj__weight=torch.zeros(50, 32),
            model__layers__1__self_attn__q_norm__weight=torch.zeros(16, dtype=torch.float64),
        ),
        [
            "  model.norm.weight: missing",
            "  model.norm.bias: unexpected",
            "  model.layers.0.mlp.up_proj.weight: is [50, 32], its config.json says [48, 32]",
            "  model.layers.1.self_attn.q_norm.weight: is F64, only BF16, F16, F32",
        ],
    ),
    "untied without a head": (
        lambda folder: edit_config(folder, tie_word_embeddings=False),
        ["  lm_head.weight: missing"],
    ),
    "many": (lambda folder: edit_config(folder, num_hidden_layers=4), ["layers.2.", "  ... and 2 more"]),
    "files elsewhere": (
        lambda folder: [
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}'),
            (folder / "model.safetensors").unlink(),
        ],
        ["model.safetensors.index.json does not say"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_with_everything_that_is_wrong(
    make_snapshot: MakeSnapshot, case: str
) -> None:
    folder, _ = make_snapshot()
    spoil, expected = REFUSED[case]
    spoil(folder)
    with pytest.raises(UserError) as error:
        Snapshot.open(folder)
    assert str(error.value).startswith(f"init.from={folder}: ")
    for part in expected:
        assert part in str(error.value)


def test_looking_at_a_snapshot_needs_no_torch(make_snapshot: MakeSnapshot) -> None:
    folder, _ = make_snapshot(dtype=torch.bfloat16)
    script = (
        "import sys; from pathlib import Path; from molgen_pretrain.model.hf_snapshot import Snapshot, resolve; "
        "snapshot = Snapshot.open(resolve(sys.argv[1])); "
        "print(snapshot.rows, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert result.stdout == "61 []\n"


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_a_hub_id_is_what_the_cache_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv(switch, "1")
    cached = tmp_path / "models--owner--name"
    (cached / "snapshots" / "0123").mkdir(parents=True)
    (cached / "snapshots" / "0123" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert resolve("owner/name") == cached / "snapshots" / "0123"
    with pytest.raises(UserError, match=r"init\.from=owner/other: no such folder, .*offline.*hf download owner/other"):
        resolve("owner/other")
    with pytest.raises(UserError, match=r"init\.from=\./other: no such folder; give"):
        resolve("./other")
    assert resolve(str(cached)) == cached

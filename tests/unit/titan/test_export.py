from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.optim import SGD

from molgen_pretrain.checkpoint.checkpointer import Checkpointer
from molgen_pretrain.tools import export_titan, import_titan


def run(tool: Any, *words: object) -> int:
    return tool.main([str(word) for word in words])


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_full_checkpoint_goes_round_bit_for_bit(titan: Any, tmp_path: Path, tied: bool, fused: bool) -> None:
    """In, out, and into buffers of TorchTitan's names and shapes, by PyTorch's own reader."""
    model = titan.model(tied=tied)
    original = titan.state(model, moments=titan.moments(model), fused=fused)
    assert run(import_titan, titan.save(original), tmp_path / "run", "--resume") == 0
    flags = ["--resume", "--data-ranks", 2, *([] if fused else ["--separate-qkv"])]
    assert run(export_titan, tmp_path / "run", tmp_path / "back", *flags) == 0

    carried = {name: value for name, value in original.items() if not name.startswith("dataloader")}
    loaded = {name: torch.full_like(v, 0.5) if isinstance(v, torch.Tensor) else None for name, v in carried.items()}
    dcp.load(loaded, checkpoint_id=tmp_path / "back", no_dist=True)
    for name, value in carried.items():
        same = torch.equal(loaded[name], value) if isinstance(value, torch.Tensor) else loaded[name] == value
        assert same, name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_hugging_face_folder_goes_round_bit_for_bit(titan: Any, tmp_path: Path, tied: bool) -> None:
    model = titan.model(tied=tied).bfloat16()
    model.save_pretrained(tmp_path / "hf", max_shard_size="4KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    assert run(export_titan, tmp_path / "hf", tmp_path / "titan") == 0
    assert run(import_titan, tmp_path / "titan", tmp_path / "back") == 0
    weights = load_file(tmp_path / "back" / "model.safetensors")
    expected = dict(model.named_parameters())
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], parameter) for name, parameter in expected.items())
    written = sum(file.stat().st_size for file in (tmp_path / "titan").glob("*.distcp"))
    assert written < sum(2 * p.numel() + 2000 for p in [*expected.values(), model.lm_head.weight])  # and no file twice


def test_an_adamw_has_everything_that_titan_asks_for(titan: Any, tmp_path: Path) -> None:
    """Its loader wants each setting of a parameter group that this torch's AdamW has, and the scheduler's."""
    model = titan.model(tied=True)
    run(import_titan, titan.save(titan.state(model, moments=titan.moments(model))), tmp_path / "run", "--resume")
    run(export_titan, tmp_path / "run", tmp_path / "back", "--resume")
    settings = {key for key in torch.optim.AdamW([torch.zeros(1)]).param_groups[0] if key != "params"} | {"initial_lr"}
    wanted = {f"optimizer.param_groups.norm.weight.{key}": None for key in settings}
    dcp.load(wanted, checkpoint_id=tmp_path / "back", no_dist=True)  # raises where one is missing
    assert wanted["optimizer.param_groups.norm.weight.weight_decay"] == 0.1


def test_other_optimizers_and_models_are_refused(
    titan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = titan.model(tied=True)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.arange(5)[None]).logits.sum().backward()
    optimizer.step()
    (tmp_path / "run").mkdir()
    saver = Checkpointer(tmp_path / "run" / "checkpoint", keep_latest_k=0)
    saver.save(3, model=model, optimizer=optimizer, state={"progress": {"step": 3, "tokens": 5}})
    assert run(export_titan, tmp_path / "run", tmp_path / "out", "--resume") == 1
    assert "not AdamW's state of every weight" in capsys.readouterr().err
    assert run(export_titan, tmp_path / "run", tmp_path / "weights") == 0  # which are a Qwen3's all the same

    model.save_pretrained(tmp_path / "hf")
    assert run(export_titan, tmp_path / "hf", tmp_path / "out", "--resume") == 1
    assert "leave out --resume" in capsys.readouterr().err
    assert run(export_titan, tmp_path / "nowhere", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()

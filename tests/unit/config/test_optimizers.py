"""The optimizer group: every choice builds what it says, every mistake gets its message before torch loads."""

from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from torch import nn

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.store import conf_dir
from molgen_pretrain.config.validate import validate
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize
from molgen_pretrain.optim.muon import MuonAdamW
from molgen_pretrain.training.optimizer_from_config import optimizer_from_config

CHOICES = sorted(path.stem for path in (conf_dir() / "optimizer").glob("*.yaml"))


def composed(*overrides: str) -> RunConfig:
    cfg = compose_run(overrides)
    validate(cfg, world_size=1)
    return cfg


def build(*overrides: str) -> torch.optim.Optimizer:
    return optimizer_from_config(composed(*overrides).optimizer, tiny())


def tiny() -> nn.Module:
    arch = Qwen3Arch(
        vocab_size=37, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, intermediate_size=24,
    )  # fmt: skip
    model = build_on_meta(arch.hf_config(eos_token_id=0, pad_token_id=0))
    materialize(model, device=torch.device("cpu"), seed=0)
    return model


def scales(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    return {group["name"]: (group["lr_scale"], group["wd_scale"]) for group in optimizer.param_groups}


def test_every_choice_builds_its_optimizer() -> None:
    classes = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD, "muon": MuonAdamW}
    assert {name: type(build(f"optimizer={name}")) for name in CHOICES} == classes


@pytest.mark.parametrize("name", CHOICES)
def test_the_settings_arrive(name: str) -> None:
    overrides = {
        "adamw": ["optimizer.betas=[0.8,0.9]", "optimizer.eps=1e-6"],
        "adam": ["optimizer.betas=[0.8,0.9]", "optimizer.eps=1e-6"],
        "sgd": ["optimizer.momentum=0.7", "optimizer.nesterov=false"],
        "muon": [
            "optimizer.momentum=0.7",
            "optimizer.ns_steps=3",
            "optimizer.adjust_lr=original",
            "optimizer.eps=1e-6",
        ],
    }[name]
    optimizer = build(f"optimizer={name}", "optimizer.fused=false", *overrides)
    found = {**optimizer.param_groups[-1], **optimizer.param_groups[0]}
    expected = {
        "adamw": {"betas": (0.8, 0.9), "eps": 1e-6, "fused": False, "decoupled_weight_decay": True},
        "adam": {"betas": (0.8, 0.9), "eps": 1e-6, "fused": False, "decoupled_weight_decay": False},
        "sgd": {"momentum": 0.7, "nesterov": False, "fused": False},
        "muon": {"momentum": 0.7, "ns_steps": 3, "adjust_lr_fn": "original", "betas": (0.9, 0.95), "fused": False},
    }[name]
    assert expected.items() <= found.items()


def test_rules_from_the_command_line() -> None:
    rules = 'optimizer.groups=[{match:"*.norm.weight",lr_scale:0.1,wd_scale:0},{match:"*.mlp.*",name:mlp,lr_scale:2}]'
    assert scales(build(rules)) == {"*.norm.weight": (0.1, 0.0), "mlp": (2.0, 1.0), "all": (1.0, 1.0)}


def test_rules_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    recipe = "# @package _global_\noptimizer:\n  groups:\n  - {match: '*embed*', name: embeddings, wd_scale: 0}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(recipe)
    cfg = composed(f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine")
    assert scales(optimizer_from_config(cfg.optimizer, tiny()))["embeddings"] == (1.0, 0.0)


def test_presets() -> None:
    by_type = build("optimizer.group_preset=by_type", "optimizer.by_type.embeddings.lr_scale=0.5")
    assert scales(by_type) == {
        "embeddings": (0.5, 1.0), "attention": (1.0, 1.0), "feed_forward": (1.0, 1.0), "norms": (1.0, 1.0)
    }  # fmt: skip
    layerwise = build("optimizer.group_preset=layerwise", "optimizer.layer_decay_rate=0.5")
    assert {name: lr for name, (lr, _) in scales(layerwise).items()} == {
        "top": 1.0, "layer_1": 0.5, "layer_0": 0.25, "embeddings": 0.125
    }  # fmt: skip


def test_norms_without_weight_decay() -> None:
    assert scales(build("optimizer.decay_norms_and_biases=false"))["norms_and_biases"] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.groups=[{lr_scale:0.1}]"], ["optimizer.groups[0].match: a value is needed"]),
        (["optimizer.groups=[{match:a,lr_scal:0.1}]"], ["lr_scal: unknown key, did you mean lr_scale?"]),
        (["optimizer.groups=[{match:a,lr_scale:-1}]"], ["optimizer.groups[0].lr_scale=-1.0: must be a number of at"]),
        (["optimizer.group_preset=by_typ"], ["optimizer.group_preset=by_typ", "none, by_type, layerwise"]),
        (["optimizer.group_preset=layerwise"], ["optimizer.layer_decay_rate=null", "in (0, 1], e.g. 0.9"]),
        (["optimizer.layer_decay_rate=0.5"], ["only with optimizer.group_preset=layerwise"]),
        (["optimizer.by_type.norms.wd_scale=0"], ["optimizer.by_type", "only with optimizer.group_preset=by_type"]),
        (["optimizer=sgd", "optimizer.momentum=1"], ["optimizer.momentum=1.0: must be in [0, 1)"]),
        (["optimizer=sgd", "optimizer.momentum=0"], ["optimizer.nesterov=true: needs optimizer.momentum > 0"]),
        (["optimizer=sgd", "optimizer.betas=[0.9,0.9]"], ["optimizer.betas: unknown key", "momentum, nesterov"]),
        (["optimizer=muon", "optimizer.adjust_lr=foo"], ["optimizer.adjust_lr=foo", "match_rms_adamw, original"]),
        (["optimizer=muon", "optimizer.ns_steps=0"], ["optimizer.ns_steps=0: must be in [1, 100)"]),
        (["optimizer=muon", "optimizer.adamw_lr_scale=-1"], ["optimizer.adamw_lr_scale=-1.0: must be at least 0"]),
        (["optimizer=muon", "optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]: must be two numbers"]),
        (["optimizer=sgd", "scheduler.decay_beta2=0.99"], ["scheduler.decay_beta2=0.99: this optimizer has no beta2"]),
        (["optimizer=lion"], ["optimizer=lion: no such choice", "adam, adamw, muon, sgd"]),
    ],
)
def test_mistakes(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises((HydraException, UserError)) as caught:
        composed(*overrides)
    message = explain(caught.value)
    assert message
    assert all(part in message for part in expected), message

"""Every trained parameter in exactly one group, with the scales that the user asked for."""

from collections.abc import Callable

import pytest
from torch import nn

from molgen_pretrain.errors import UserError
from molgen_pretrain.optim.param_groups import GroupRule, ParamGroup, build_param_groups

Tiny = Callable[..., nn.Module]


def scales(groups: list[ParamGroup]) -> dict[str, tuple[float, float]]:
    return {name: (group.lr_scale, group.wd_scale) for group in groups for name, _ in group.named_parameters}


def names(groups: list[ParamGroup]) -> list[str]:
    return [group.name for group in groups]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("preset", ["none", "by_type", "layerwise"])
@pytest.mark.parametrize("rules", [(), (GroupRule("*norm*", wd_scale=0.0), GroupRule("*.mlp.*", "mlp", 2.0, 0.5))])
def test_groups_are_a_partition(tiny: Tiny, preset: str, decay: bool, rules: tuple, tied: bool) -> None:
    model = tiny(tied=tied)
    groups = build_param_groups(
        model.named_parameters(), preset=preset, rules=rules, layer_decay_rate=0.5, decay_norms_and_biases=decay
    )
    grouped = [p for group in groups for p in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert len(set(names(groups))) == len(groups)
    assert all(p is model.get_parameter(name) for group in groups for name, p in group.named_parameters)


def test_without_settings_there_is_one_group(tiny: Tiny) -> None:
    (group,) = build_param_groups(tiny().named_parameters())
    assert (group.name, group.lr_scale, group.wd_scale) == ("all", 1.0, 1.0)


@pytest.mark.parametrize("preset", ["none", "by_type", "layerwise"])
def test_norms_and_biases_can_go_without_decay(preset: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    groups = build_param_groups(model.named_parameters(), preset=preset, decay_norms_and_biases=False)
    for name, (_, wd_scale) in scales(groups).items():
        assert wd_scale == (1.0 if model.get_parameter(name).ndim == 2 else 0.0)


def test_by_type(tiny: Tiny) -> None:
    given = {"embeddings": (0.1, 0.0), "attention": (2.0, 1.0), "norms": (0.5, 0.0)}
    model = tiny(tied=False)
    groups = build_param_groups(model.named_parameters(), preset="by_type", type_scales=given)
    assert set(names(groups)) == {"embeddings", "attention", "feed_forward", "norms"}
    found = scales(groups)
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == (0.1, 0.0)
    assert found["model.layers.1.self_attn.o_proj.weight"] == (2.0, 1.0)
    assert found["model.layers.1.mlp.down_proj.weight"] == (1.0, 1.0)
    assert found["model.layers.0.self_attn.q_norm.weight"] == found["model.norm.weight"] == (0.5, 0.0)


def test_layerwise_falls_from_the_head_to_the_embedding(tiny: Tiny) -> None:
    model = tiny(layers=3, tied=False)
    found = scales(build_param_groups(model.named_parameters(), preset="layerwise", layer_decay_rate=0.5))
    assert found["lm_head.weight"] == found["model.norm.weight"] == (1.0, 1.0)
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"][0] for i in range(3)] == [0.125, 0.25, 0.5]
    assert found["model.embed_tokens.weight"] == (0.0625, 1.0)


def test_a_tied_head_counts_once_as_the_embedding(tiny: Tiny) -> None:
    model = tiny()
    twice = list(model.named_parameters(remove_duplicate=False))
    assert [name for name, _ in twice].count("lm_head.weight") == 1
    groups = build_param_groups(twice, preset="layerwise", layer_decay_rate=0.5)
    assert scales(groups)["model.embed_tokens.weight"] == (0.125, 1.0)
    assert sum(len(group.parameters) for group in groups) == len(list(model.parameters()))


def test_first_matching_rule_wins_and_star_crosses_dots(tiny: Tiny) -> None:
    rules = [
        GroupRule("*.norm.weight", lr_scale=0.1, wd_scale=0.0),
        GroupRule("*norm*", "other norms", lr_scale=0.2),
    ]
    groups = build_param_groups(tiny().named_parameters(), rules=rules)
    assert set(names(groups)) == {"*.norm.weight", "other norms", "all"}
    assert scales(groups)["model.norm.weight"] == (0.1, 0.0)
    assert scales(groups)["model.layers.0.input_layernorm.weight"] == (0.2, 1.0)


def test_a_rule_keeps_what_it_does_not_name(tiny: Tiny) -> None:
    rules = [GroupRule("*norm*", "norms", wd_scale=0.0)]
    groups = build_param_groups(
        tiny().named_parameters(), rules=rules, preset="layerwise", layer_decay_rate=0.5, decay_norms_and_biases=False
    )
    assert scales(groups)["model.layers.1.input_layernorm.weight"] == (0.5, 0.0)
    assert scales(groups)["model.norm.weight"] == (1.0, 0.0)
    assert scales(groups)["model.layers.1.mlp.up_proj.weight"] == (0.5, 1.0)


def test_frozen_parameters_are_left_out(tiny: Tiny) -> None:
    model = tiny()
    model.get_parameter("model.embed_tokens.weight").requires_grad_(False)
    assert "model.embed_tokens.weight" not in scales(build_param_groups(model.named_parameters()))


def test_names_do_not_depend_on_wrappers(tiny: Tiny) -> None:
    wrapped = [(f"_orig_mod.{name}", p) for name, p in tiny().named_parameters()]
    assert "model.norm.weight" in scales(build_param_groups(wrapped, rules=[GroupRule("model.norm.*")]))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([GroupRule("*.norms.weight")], ["match=*.norms.weight: matches no parameter", "model.norm.weight"]),
        ([GroupRule("model.layer.*.mlp.*")], ["model.layers.*.mlp.up_proj.weight"]),
        ([GroupRule("*norm*"), GroupRule("*.q_norm.*")], ["match=*.q_norm.*: an earlier rule takes every parameter"]),
        ([GroupRule("*q_norm*", "a", 2.0), GroupRule("*k_norm*", "a", 3.0)], ["name=a: another group has this name"]),
    ],
)
def test_rules_without_effect_are_refused(tiny: Tiny, rules: list[GroupRule], expected: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_param_groups(tiny().named_parameters(), rules=rules)
    assert all(part in str(caught.value) for part in expected), str(caught.value)

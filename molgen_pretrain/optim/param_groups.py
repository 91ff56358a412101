"""Parameter groups: which weights share a scale of learning rate and weight decay."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from molgen_pretrain.errors import UserError
from molgen_pretrain.optim.presets import Assignment, Preset, by_type, is_vector, layerwise

# What torch.compile and activation checkpointing put into names.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class GroupRule:
    """Scales for the parameters whose name matches a glob; `*` crosses dots. None: what the preset says."""

    match: str
    name: str | None = None
    lr_scale: float | None = None
    wd_scale: float | None = None

    @property
    def group(self) -> str:
        return self.name or self.match


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with lr = schedule.lr * lr_scale and weight decay = schedule.weight_decay * wd_scale."""

    name: str
    named_parameters: tuple[tuple[str, nn.Parameter], ...]
    lr_scale: float = 1.0
    wd_scale: float = 1.0

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(parameter for _, parameter in self.named_parameters)

    def as_torch(self) -> dict[str, Any]:
        """The group in the form that torch optimizers take; they carry the extra keys along."""
        return {
            "params": list(self.parameters),
            "name": self.name,
            "lr_scale": self.lr_scale,
            "wd_scale": self.wd_scale,
        }

    def partition(self, belongs: Callable[[str, int], bool]) -> tuple[ParamGroup | None, ParamGroup | None]:
        """The group's parameters for which `belongs(name, ndim)` holds, and the rest; None for an empty half."""
        members = [pair for pair in self.named_parameters if belongs(pair[0], pair[1].ndim)]
        others = [pair for pair in self.named_parameters if not belongs(pair[0], pair[1].ndim)]
        first, second = (replace(self, named_parameters=tuple(half)) if half else None for half in (members, others))
        return first, second


def build_param_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    rules: Sequence[GroupRule] = (),
    preset: Preset = "none",
    type_scales: Mapping[str, tuple[float, float]] | None = None,
    layer_decay_rate: float = 1.0,
    decay_norms_and_biases: bool = True,
) -> list[ParamGroup]:
    """Put every trained parameter into exactly one group; a tied one counts under its first name.

    The preset decides first: `none` (one group), `by_type` (with `type_scales`, (lr, weight decay) by type) or
    `layerwise` (with `layer_decay_rate`). `decay_norms_and_biases=False` then takes the weight decay from
    norms and biases. Last, the first rule that matches a parameter's name puts it into a group of its own and
    sets the scales that it names. Only names and numbers of dimensions count, so sharding changes nothing.

    Raises UserError for a rule without effect and for two groups of one name.
    """
    parameters = _trained(named_parameters)
    ndims = {name: parameter.ndim for name, parameter in parameters.items()}
    assigned = _preset_groups(ndims, preset, type_scales or {}, layer_decay_rate, decay_norms_and_biases)
    assigned = _apply_rules(assigned, rules)
    members: dict[Assignment, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters.items():
        members.setdefault(assigned[name], []).append((name, parameter))
    _refuse_equal_names([assignment.group for assignment in members])
    return [ParamGroup(a.group, tuple(pairs), a.lr_scale, a.wd_scale) for a, pairs in members.items()]


def _trained(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    parameters, seen = {}, set()
    for raw_name, parameter in named_parameters:
        name = raw_name
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            parameters[name] = parameter
    return parameters


def _preset_groups(
    ndims: Mapping[str, int],
    preset: Preset,
    type_scales: Mapping[str, tuple[float, float]],
    layer_decay_rate: float,
    decay_norms_and_biases: bool,
) -> dict[str, Assignment]:
    if preset == "by_type":
        assigned = by_type(ndims, type_scales)
    elif preset == "layerwise":
        assigned = layerwise(ndims, layer_decay_rate)
    else:
        assigned = {name: Assignment("all" if decay_norms_and_biases else "matrices") for name in ndims}
    if decay_norms_and_biases:
        return assigned
    vectors = {name: a for name, a in assigned.items() if is_vector(name, ndims[name])}
    names = {"none": "norms_and_biases", "by_type": "{}", "layerwise": "{}.norms_and_biases"}
    without = {n: replace(a, group=names[preset].format(a.group), wd_scale=0.0) for n, a in vectors.items()}
    return {**assigned, **without}


def _apply_rules(assigned: Mapping[str, Assignment], rules: Sequence[GroupRule]) -> dict[str, Assignment]:
    result = dict(assigned)
    taken: set[str] = set()
    for rule in rules:
        matching = [name for name in assigned if fnmatchcase(name, rule.match)]
        mine = {name: _ruled(rule, assigned[name]) for name in matching if name not in taken}
        if not mine:
            raise UserError(_no_effect(rule, list(assigned), shadowed=bool(matching)))
        if len(set(mine.values())) > 1:  # the preset keeps its differences within the rule's group
            mine = {name: replace(a, group=f"{a.group}.{assigned[name].group}") for name, a in mine.items()}
        result |= mine
        taken |= mine.keys()
    return result


def _ruled(rule: GroupRule, before: Assignment) -> Assignment:
    return Assignment(
        rule.group,
        before.lr_scale if rule.lr_scale is None else rule.lr_scale,
        before.wd_scale if rule.wd_scale is None else rule.wd_scale,
    )


def _no_effect(rule: GroupRule, names: Sequence[str], *, shadowed: bool) -> str:
    where = f"optimizer.groups: match={rule.match}"
    if shadowed:
        return f"{where}: an earlier rule takes every parameter that it matches; the first match wins"
    # Blocks have the same names but for their number, and `*` stands for it in a pattern as well.
    patterns = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    near = difflib.get_close_matches(rule.match, patterns, n=3, cutoff=0.0)
    return f"{where}: matches no parameter; nearest names: {', '.join(near)}"


def _refuse_equal_names(groups: Sequence[str]) -> None:
    if twice := sorted({group for group in groups if groups.count(group) > 1}):
        raise UserError(f"optimizer.groups: name={twice[0]}: another group has this name; give each rule its own")

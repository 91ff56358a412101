"""config.json of a Hugging Face Qwen3: the sizes in it, and the tensors that go with them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molgen_pretrain.errors import UserError

CONFIG_FILE = "config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
# What a config.json without the key means, by transformers' Qwen3Config.
_DEFAULTS = {
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
}
_DEFAULT_ROPE_THETA = 10_000.0
# Variants of the architecture that are not trained here; None: the key may be absent.
_ONLY = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}
# What weights and logits depend on. Rows of the embedding are the row plan's affair; the longest position and the
# spread of initial weights leave a finished model as it is.
_COMPARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "tie_word_embeddings",
    "rope_theta",
    "rms_norm_eps",
)


def read_sizes(folder: Path, setting: str) -> dict[str, Any]:
    """The sizes in a snapshot's config.json, in the names of `Qwen3Arch`.

    Raises UserError, with everything that is wrong, where there is no such file or it is of another architecture.
    """
    content = read_json(folder / CONFIG_FILE, f"{setting}={folder}")
    problems = [
        f"{key} is {json.dumps(content.get(key))}, only {json.dumps(legal[0])} is supported"
        for key, legal in _ONLY.items()
        if content.get(key) not in legal
    ]
    # transformers before 5 writes rope_theta by itself and a rope_scaling that is mostly null.
    rope = {**(content.get("rope_scaling") or {}), **(content.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        problems.append(f"rope_type is {json.dumps(kind)}; scaled rotary positions are not trained here")
    sizes = {name: content.get(name, _DEFAULTS.get(name)) for name in (*_REQUIRED, *_DEFAULTS)}
    sizes["rope_theta"] = rope.get("rope_theta", content.get("rope_theta", _DEFAULT_ROPE_THETA))
    problems += [f"{name} is {json.dumps(v)}, no number" for name, v in sizes.items() if not isinstance(v, int | float)]
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"{setting}={folder}: {CONFIG_FILE} is not of a Qwen3 that can be trained here:\n{lines}")
    return sizes


def size_problems(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """A line for every setting of the model group (`ours`, by name) that a snapshot's sizes contradict."""
    return [
        f"model.{name}={ours[name]}: the snapshot of init.from has {theirs[name]}; give that, or another snapshot"
        for name in _COMPARED
        if ours[name] != theirs[name]
    ]


def tensor_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Qwen3ForCausalLM of these sizes, by name; a tied head is not repeated."""
    table = sizes["vocab_size"], sizes["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table, "model.norm.weight": table[1:]}
    for layer in range(sizes["num_hidden_layers"]):
        shapes.update((f"model.layers.{layer}.{name}.weight", shape) for name, shape in _block_shapes(sizes))
    if not sizes["tie_word_embeddings"]:
        shapes[HEAD] = table
    return shapes


def _block_shapes(sizes: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, head_dim = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    queries, keys = sizes["num_attention_heads"] * head_dim, sizes["num_key_value_heads"] * head_dim
    yield "self_attn.q_proj", (queries, hidden)
    yield "self_attn.k_proj", (keys, hidden)
    yield "self_attn.v_proj", (keys, hidden)
    yield "self_attn.o_proj", (hidden, queries)
    yield "self_attn.q_norm", (head_dim,)
    yield "self_attn.k_norm", (head_dim,)
    yield "mlp.gate_proj", (inner, hidden)
    yield "mlp.up_proj", (inner, hidden)
    yield "mlp.down_proj", (hidden, inner)
    yield "input_layernorm", (hidden,)
    yield "post_attention_layernorm", (hidden,)


def read_json(file: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: cannot read {file.name}: {error.strerror}; give a Hugging Face folder") from None
    except ValueError as error:
        raise UserError(f"{where}: {file.name} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: {file.name} must hold a JSON object")
    return content

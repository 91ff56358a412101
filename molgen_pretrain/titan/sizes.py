"""The sizes of a Qwen3, as the shapes of its weights tell them, and whether all its weights agree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from molgen_pretrain.errors import UserError
from molgen_pretrain.titan.names import EMBEDDING, HEAD

Shape = tuple[int, ...]

_FIRST_BLOCK = "model.layers.0"
_BLOCK = re.compile(r"model\.layers\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class Qwen3Sizes:
    """In the names of the Hugging Face config."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    tie_word_embeddings: bool

    def shapes(self) -> dict[str, Shape]:
        """Every weight by its Hugging Face name, a tied head once."""
        hidden, queries = self.hidden_size, self.num_attention_heads * self.head_dim
        keys, inner = self.num_key_value_heads * self.head_dim, self.intermediate_size
        in_block = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes: dict[str, Shape] = {EMBEDDING: (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in in_block.items()}
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes[HEAD] = (self.vocab_size, hidden)
        return shapes


def sizes_of(shapes: Mapping[str, Shape], *, tied: bool, where: str) -> Qwen3Sizes:
    """Sizes from the weights of a model (Hugging Face names; a tied head left out), all of which are checked.

    Raises:
        UserError: weights are missing, unexpected or ill-shaped; it lists them.
    """

    def dim(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        return shape[axis] if axis < len(shape) else 0

    head_dim = max(dim(f"{_FIRST_BLOCK}.self_attn.q_norm.weight", 0), 1)
    sizes = Qwen3Sizes(
        vocab_size=dim(EMBEDDING, 0),
        hidden_size=dim(EMBEDDING, 1),
        num_hidden_layers=max(len({match.group() for match in map(_BLOCK.match, shapes) if match}), 1),
        num_attention_heads=dim(f"{_FIRST_BLOCK}.self_attn.q_proj.weight", 0) // head_dim,
        num_key_value_heads=dim(f"{_FIRST_BLOCK}.self_attn.k_proj.weight", 0) // head_dim,
        head_dim=head_dim,
        intermediate_size=dim(f"{_FIRST_BLOCK}.mlp.gate_proj.weight", 0),
        tie_word_embeddings=tied,
    )
    expected = sizes.shapes()
    problems = [f"{name}: missing" for name in expected if name not in shapes]
    problems += [f"{name}: no weight of this model" for name in shapes if name not in expected]
    # Only of a full set can be said which shape is the odd one.
    problems = problems or [
        f"{name}: {shapes[name]}, where the other weights ask for {shape}"
        for name, shape in expected.items()
        if shapes[name] != shape
    ]
    heads, kv_heads = sizes.num_attention_heads, sizes.num_key_value_heads
    if not problems and (kv_heads == 0 or heads % kv_heads):
        problems = [f"{heads} heads cannot share {kv_heads} key/value heads evenly"]
    refuse(where, problems)
    return sizes


def refuse(where: str, problems: Sequence[str]) -> None:
    """Raise UserError that lists the problems, if there are any."""
    if problems:
        raise UserError("\n  ".join([f"{where}:", *problems]))

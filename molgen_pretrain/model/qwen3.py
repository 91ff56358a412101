"""transformers' Qwen3ForCausalLM with the training loss inside its forward, built on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.model.init import init_weights
from molgen_pretrain.model.loss import token_loss_sum


@dataclass(frozen=True, kw_only=True)
class Qwen3Arch:
    """Sizes of a Qwen3, in the names of its Hugging Face config."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int = 40960
    tie_word_embeddings: bool = True
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def hf_config(self, *, eos_token_id: int, pad_token_id: int) -> Qwen3Config:
        """The Hugging Face config of this architecture, as an export carries it."""
        config = Qwen3Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            tie_word_embeddings=self.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            rms_norm_eps=self.rms_norm_eps,
            initializer_range=self.initializer_range,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
        # The class below is ours; what we export is loaded as the plain one.
        config.architectures = [Qwen3ForCausalLM.__name__]
        return config


class Qwen3ForPretraining(Qwen3ForCausalLM):
    """Qwen3ForCausalLM whose forward returns the summed token loss.

    The loss belongs inside the root module's forward: with FSDP2 the head's weight is whole only there.
    """

    loss_chunk_tokens: int = 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Sum of the next-token cross entropies, float32 scalar.

        input_ids and labels are int64 [batch, seq]; labels[b, t] is the token after input_ids[b, t], or -100
        where nothing is predicted. Attention is causal over the whole sequence.
        """
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state  # [batch, seq, hidden]
        return token_loss_sum(self.lm_head, hidden, labels, chunk_tokens=self.loss_chunk_tokens)


def build_on_meta(config: Qwen3Config, *, loss_chunk_tokens: int = 0) -> Qwen3ForPretraining:
    """The model without memory for its weights, float32, ready to be sharded and then materialised."""
    with torch.device("meta"):
        model = Qwen3ForPretraining(config)
    model.loss_chunk_tokens = loss_chunk_tokens
    return model.train()


def materialize(model: Qwen3ForPretraining, *, device: torch.device, seed: int) -> None:
    """Give a meta model its memory and initial weights, in place, whatever its sharding.

    The same seed gives the same weights on any number of ranks.
    """
    model.to_empty(device=device)
    # to_empty makes the tied head a tensor of its own where nothing is sharded.
    model.tie_weights()
    _restore_rotary_buffers(model)
    init_weights(model, seed=seed, std=model.config.initializer_range)


def count_parameters(model: torch.nn.Module) -> int:
    """Trained parameters of the whole model, tied ones once, shards counted in full."""
    return sum(p.numel() for p in model.parameters())


def _restore_rotary_buffers(model: Qwen3ForPretraining) -> None:
    """Non-persistent buffers hold garbage after to_empty, and no state dict brings them back."""
    rotary = model.model.rotary_emb
    fresh = type(rotary)(config=model.config)
    for name, buffer in rotary.named_buffers():
        buffer.copy_(fresh.get_buffer(name))

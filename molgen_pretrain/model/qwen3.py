"""transformers' Qwen3ForCausalLM with the training loss inside its forward, built on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from molgen_pretrain.model.document_mask import (
    DOCUMENT_ATTENTION,
    causal_arguments,
    document_arguments,
    has_varlen_kernel,
    register_document_attention,
)
from molgen_pretrain.model.fused_ops import fuse_ops
from molgen_pretrain.model.init import init_weights
from molgen_pretrain.model.loss import LossSums, token_loss_sum
from molgen_pretrain.model.loss_kernels import LossKernel


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

    loss_kernel: LossKernel = "fused"
    loss_chunk_tokens: int | None = None
    loss_classes: int = 0

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        token_classes: Tensor | None = None,
        unit_borders: Tensor | None = None,
        trained_tokens: int | None = None,
    ) -> LossSums:
        """Sums of the next-token cross entropies, in total and by class.

        The first four are integers [batch, seq]. labels[b, t] is the token after input_ids[b, t], or -100 where
        nothing is predicted. position_ids, for a model built with `document_mask`: the place within its unit, 0
        where one begins; attention is causal within a unit, without them over the whole row. token_classes, for a
        model built with `loss_classes`: the class of each label. Raises ValueError if the model was built for neither.

        What the host knows saves a GPU work, and waiting for it: unit_borders (see `document_arguments`), and
        trained_tokens, how many labels are not -100.
        """
        if token_classes is not None and not self.loss_classes:
            raise ValueError("token_classes need a model built with loss_classes")
        documents = causal_arguments() if position_ids is None else self._document_arguments(position_ids, unit_borders)
        decoded = self.model(input_ids=input_ids, use_cache=False, **documents)
        return token_loss_sum(
            self.lm_head,
            decoded.last_hidden_state,  # [batch, seq, hidden]
            labels,
            kernel=self.loss_kernel,
            chunk_tokens=self.loss_chunk_tokens,
            trained_tokens=trained_tokens,
            token_classes=token_classes,
            classes=self.loss_classes,
        )

    def _document_arguments(self, position_ids: Tensor, unit_borders: Tensor | None) -> dict[str, Any]:
        if self.config._attn_implementation != DOCUMENT_ATTENTION:
            raise ValueError("position_ids need a model built with document_mask")
        kind = position_ids.device.type
        # What queries will be: autocast's choice, or that of the weights, which FSDP2 casts for the forward.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.lm_head.weight.dtype
        varlen = has_varlen_kernel(position_ids.device, dtype, self.config.head_dim)
        return document_arguments(position_ids, unit_borders=unit_borders if varlen else None)


def build_on_meta(
    config: Qwen3Config,
    *,
    loss_kernel: LossKernel = "fused",
    loss_chunk_tokens: int | None = None,
    fused_ops: bool = True,
    document_mask: bool = False,
    loss_classes: int = 0,
) -> Qwen3ForPretraining:
    """The model without memory for its weights, float32, ready to be sharded and then materialised.

    `loss_kernel` and `loss_chunk_tokens` are those of `token_loss_sum`; `fused_ops` calls for `fuse_ops`.
    `document_mask` readies it for position_ids, `loss_classes` > 0 for token_classes of so many classes.
    """
    with torch.device("meta"):
        model = Qwen3ForPretraining(config)
    # The padding token separates units, so it is input that is trained on; torch would drop its row's gradient.
    model.model.embed_tokens.padding_idx = None
    model.loss_kernel = loss_kernel
    model.loss_chunk_tokens = loss_chunk_tokens
    model.loss_classes = loss_classes
    if document_mask:
        register_document_attention()
        model.set_attn_implementation(DOCUMENT_ATTENTION)
    if fused_ops:
        fuse_ops(model)
    return model.train()


def materialize(
    model: Qwen3ForPretraining,
    *,
    device: torch.device,
    seed: int,
    weights_device: torch.device | None = None,
    load: Callable[[Qwen3ForPretraining], None] | None = None,
) -> None:
    """Give a meta model its memory and initial weights, in place, whatever its sharding.

    The same seed gives the same weights on any number of ranks; `load`, if given, fills every parameter instead.
    `device` is where the model runs; `weights_device`, if another, is where its weights stay (offloaded to the CPU).
    """
    model.to_empty(device=weights_device or device)
    # to_empty makes the tied head a tensor of its own where nothing is sharded.
    model.tie_weights()
    _restore_rotary_buffers(model, device)
    if load is None:
        init_weights(model, seed=seed, std=model.config.initializer_range)
    else:
        load(model)


def count_parameters(model: torch.nn.Module) -> int:
    """Trained parameters of the whole model, tied ones once, shards counted in full."""
    return sum(p.numel() for p in model.parameters())


def _restore_rotary_buffers(model: Qwen3ForPretraining, device: torch.device) -> None:
    """Non-persistent buffers hold garbage after to_empty, and no state dict brings them back."""
    rotary = model.model.rotary_emb.to_empty(device=device)
    fresh = type(rotary)(config=model.config)
    for name, buffer in rotary.named_buffers():
        buffer.copy_(fresh.get_buffer(name))

"""Memory of one rank at the moments of a step where it may be highest.

Master weights, gradients and optimizer state are float32 and divided as ZeRO's third stage divides them (Rajbhandari
et al. 2020, arXiv 1910.02054); what activations take is in `activations`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from molgen_pretrain.model.flops import ModelSizes
from molgen_pretrain.model.loss_kernels import LossKernel
from molgen_pretrain.model.parameters import Parameters, count
from molgen_pretrain.parallel.degrees import Degrees
from molgen_pretrain.planning.activations import Checkpointing, Operators, Precision, element_size, kept
from molgen_pretrain.planning.loss import Logits, head_gradient_bytes, loss_bytes

GIB = 2**30
_MASTER = 4  # bytes of a float32

OptimizerKind = Literal["adamw", "adam", "sgd", "muon"]
Moment = Literal["loss", "backward", "update"]
MOMENTS: dict[Moment, str] = {
    "loss": "all blocks are through, the head computes the loss",
    "backward": "the last block goes back, all others still have their activations",
    "update": "the embedding's gradient is there, the optimizer follows",
}


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """One rank of a run, as far as memory and traffic depend on it.

    `chunk_tokens`: whose logits exist at a time; 0: those of all. `keeps_gathered`: FSDP2's weights stay whole between
    forward and backward. `prefetch`: blocks that are gathered ahead, 0 for FSDP2's own one.
    """

    sizes: ModelSizes
    seq_len: int
    local_batch_size: int
    accumulation: int
    degrees: Degrees
    precision: Precision
    operators: Operators
    checkpointing: Checkpointing
    optimizer: OptimizerKind
    has_momentum: bool
    loss_kernel: LossKernel
    chunk_tokens: int
    keeps_gathered: bool = False
    prefetch: int = 0
    cpu_offload: bool = False

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.local_batch_size * self.seq_len

    @property
    def parameters(self) -> Parameters:
        """What the rank would hold if only tensor parallelism cut it."""
        return count(self.sizes).of_tensor_rank(self.degrees.tensor)

    def with_batch(self, local_batch_size: int) -> RankLoad:
        return replace(self, local_batch_size=local_batch_size)

    def with_accumulation(self, accumulation: int) -> RankLoad:
        return replace(self, accumulation=accumulation)


@dataclass(frozen=True)
class Need:
    """Bytes by kind at one moment."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    copies: float = 0.0  # of weights, whole or in another dtype, and what gradients are reduced through
    activations: float = 0.0
    loss: float = 0.0
    working: float = 0.0
    batches: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory(load: RankLoad) -> dict[Moment, Need]:
    """What the rank's device holds at each moment, without what the process itself takes."""
    lasting = Need(
        weights=_weights(load), optimizer=_optimizer_state(load), batches=16.0 * load.tokens * load.accumulation
    )
    summed = _summed_gradients(load)
    activations = _activations(load)
    return {
        "loss": replace(
            lasting,
            gradients=summed,
            copies=_gathered(load, blocks=0) + _cast(load, blocks=load.parameters.blocks),
            activations=activations,
            loss=loss_bytes(load.loss_kernel, _logits(load), load.precision),
        ),
        "backward": replace(
            lasting,
            gradients=summed,
            copies=_copies_in_backward(load),
            activations=activations,
            loss=_head_gradient(load),
            working=_working(load),
        ),
        "update": replace(lasting, **_at_update(load)),
    }


def peak(load: RankLoad) -> tuple[Moment, Need]:
    """The moment that needs most."""
    return max(memory(load).items(), key=lambda item: item[1].total)


def largest_local_batch(load: RankLoad, limit_bytes: float) -> int:
    """Most sequences per micro-batch that fit; 0 where not even one does."""
    if peak(load.with_batch(1))[1].total > limit_bytes:
        return 0
    fits, too_many = 1, 2
    while peak(load.with_batch(too_many))[1].total <= limit_bytes:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if peak(load.with_batch(middle))[1].total <= limit_bytes:
            fits = middle
        else:
            too_many = middle
    return fits


def host_bytes(load: RankLoad) -> float:
    """What `cpu_offload` keeps on the host instead: weights, gradients and optimizer state."""
    if not load.cpu_offload:
        return 0.0
    on_device = replace(load, cpu_offload=False)
    return 2 * _weights(on_device) + _optimizer_state(on_device)


def _local(load: RankLoad, parameters: float) -> float:
    """Bytes of this rank's float32 part of so many parameters."""
    return _MASTER * parameters / (load.degrees.shard if load.degrees.fsdp else 1)


def _weights(load: RankLoad) -> float:
    """As many bytes as their gradients take, once these are divided."""
    return 0.0 if load.cpu_offload else _local(load, load.parameters.total)


def _optimizer_state(load: RankLoad) -> float:
    parameters = load.parameters
    if load.cpu_offload:
        return 0.0
    if load.optimizer == "sgd":
        return _local(load, parameters.total) if load.has_momentum else 0.0
    if load.optimizer == "muon":  # one moment of the hidden matrices, AdamW's two of the rest
        return _local(load, 2 * parameters.total - parameters.hidden_matrices)
    return _local(load, 2 * parameters.total)


def _summed_gradients(load: RankLoad) -> float:
    """Those of earlier micro-batches: whole ones under FSDP2, which divides them with the last."""
    if not load.degrees.fsdp and load.degrees.replicate > 1:
        return _weights(load)  # DDP's buckets, which stay
    return _MASTER * load.parameters.total if load.accumulation > 1 else 0.0


def _gathered(load: RankLoad, *, blocks: int) -> float:
    """Weights of the root and of `blocks` blocks that FSDP2 has gathered."""
    if not load.degrees.fsdp:
        return 0.0
    parameters = load.parameters
    held = parameters.blocks if load.keeps_gathered else min(blocks, parameters.blocks)
    return _gathered_size(load) * (parameters.root + held * parameters.block)


def _cast(load: RankLoad, *, blocks: int) -> float:
    """What autocast has made of the weights of so many blocks. It keeps them to the end of the forward, and the graph
    keeps them for the backward."""
    return 2.0 * blocks * load.parameters.block_matrices if load.precision == "autocast" else 0.0


def _copies_in_backward(load: RankLoad) -> float:
    """The block that goes back and those gathered ahead of it; a checkpointed one casts its weights again."""
    gathered = _gathered(load, blocks=1 + max(load.prefetch, 1))
    cast = _cast(load, blocks=load.parameters.blocks if load.checkpointing == "none" else 1)
    return gathered + cast + _reduction(load, load.parameters.block)


def _gathered_size(load: RankLoad) -> int:
    """Bytes of a weight as FSDP2 gathers it."""
    return 2 if load.precision == "bfloat16" else 4


def _reduction(load: RankLoad, parameters: int) -> float:
    """Whole gradients on their way to their ranks, as computed and in float32."""
    return (_gathered_size(load) + 4.0) * parameters if load.degrees.fsdp else 0.0


def _activations(load: RankLoad) -> float:
    block = kept(load.operators, load.precision, load.checkpointing).bytes_per_token(load.sizes, load.degrees.tensor)
    # The final norm is never compiled nor checkpointed: half of what an eager block keeps of the hidden state.
    last_norm = kept("eager", load.precision, "none").hidden / 2 * load.sizes.hidden_size
    return load.tokens * (block * load.sizes.num_hidden_layers + last_norm)


def _working(load: RankLoad) -> float:
    """Of one block's backward: two gradients as wide as the feed-forward, and what was not kept."""
    gradients = 2 * element_size(load.precision) * load.sizes.intermediate_size / load.degrees.tensor
    recomputed = 0.0
    if load.checkpointing != "none":
        everything = kept(load.operators, load.precision, "none")
        recomputed = everything.bytes_per_token(load.sizes, load.degrees.tensor)
    return load.tokens * (gradients + recomputed)


def _at_update(load: RankLoad) -> dict[str, float]:
    """The root's gradient comes last: of a tied table the embedding's own, added to the head's (into a third table,
    unless the fused loss has made the head's)."""
    tables = 0 if not load.sizes.tie_word_embeddings else 1 if load.loss_kernel == "fused" else 2
    working = tables * head_gradient_bytes(_logits(load), load.precision)
    if load.degrees.fsdp:
        return {
            "gradients": max(_weights(load), _summed_gradients(load)),
            "copies": _gathered_size(load) * load.parameters.root + _reduction(load, load.parameters.root),
            "working": working,
        }
    return {"gradients": _weights(load), "working": working}


def _logits(load: RankLoad) -> Logits:
    chunk = min(load.chunk_tokens or load.tokens, load.tokens)
    sizes = load.sizes
    return Logits(load.tokens, chunk, sizes.vocab_size, sizes.hidden_size, weights=load.parameters.embedding)


def _head_gradient(load: RankLoad) -> float:
    return head_gradient_bytes(_logits(load), load.precision)

"""What ranks tell each other in a step, and how much of it computation hides."""

from __future__ import annotations

from dataclasses import dataclass, field

from molgen_pretrain.planning.activations import element_size
from molgen_pretrain.planning.gpus import Gpu
from molgen_pretrain.planning.links import Group, Transfer, all_reduce, gather, groups
from molgen_pretrain.planning.memory import RankLoad

_GRADIENT = 4  # bytes: gradients are summed in float32


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """By when it can happen. `forward` and `backward` (of one micro-batch) and `reduction` (in the last micro-batch's
    backward) run beside the blocks' computation; `exposed` is waited for, once per step, `tensor` in every
    micro-batch."""

    accumulation: int
    forward: Transfer = field(default_factory=Transfer)
    backward: Transfer = field(default_factory=Transfer)
    reduction: Transfer = field(default_factory=Transfer)
    exposed: Transfer = field(default_factory=Transfer)
    tensor: Transfer = field(default_factory=Transfer)

    @property
    def total(self) -> Transfer:
        """Of a step."""
        per_micro_batch = self.forward + self.backward + self.tensor
        return per_micro_batch.times(self.accumulation) + self.reduction + self.exposed

    def waiting_seconds(self, compute_seconds: float) -> float:
        """What a step of so much computation, a third of it forward, waits for others."""
        forward = compute_seconds / 3 / self.accumulation
        backward = 2 * forward
        waits = self.accumulation * max(0.0, self.forward.seconds - forward)
        waits += (self.accumulation - 1) * max(0.0, self.backward.seconds - backward)
        waits += max(0.0, self.backward.seconds + self.reduction.seconds - backward)
        return waits + self.exposed.seconds + self.accumulation * self.tensor.seconds


def step_traffic(load: RankLoad, gpu: Gpu) -> Traffic:
    """Of one rank and step. FSDP2 gathers weights in the compute dtype for forward and, unless kept, for backward,
    and scatters gradients; copies add those up (HSDP, DDP); tensor parallelism adds up hidden states (Rajbhandari et
    al. 2020, arXiv 1910.02054, section 7; Shoeybi et al. 2019, arXiv 1909.08053, section 3)."""
    tensor, shard, replicate = groups(load.degrees, gpu)
    parameters = load.parameters
    own = Traffic(accumulation=load.accumulation, tensor=_tensor_traffic(load, tensor))
    if not load.degrees.fsdp:
        table = parameters.embedding + parameters.final_norm
        rest = parameters.total - table
        return Traffic(
            accumulation=load.accumulation,
            reduction=all_reduce(_GRADIENT * rest, replicate),
            exposed=all_reduce(_GRADIENT * table, replicate),
            tensor=own.tensor,
        )
    blocks, size = parameters.blocks, element_size(load.precision)
    block = gather(size * parameters.block, shard)
    return Traffic(
        accumulation=load.accumulation,
        # Nothing runs yet beside the gathering of the root and of the first block.
        forward=block.times(blocks - 1),
        backward=Transfer() if load.keeps_gathered else block.times(blocks - 1),
        reduction=_reduction(parameters.block, shard, replicate).times(blocks),
        # The root's gradients are complete when all blocks are through.
        exposed=(gather(size * parameters.root, shard) + block).times(load.accumulation)
        + _reduction(parameters.root, shard, replicate),
        tensor=own.tensor,
    )


def _reduction(count: int, shard: Group, replicate: Group) -> Transfer:
    return gather(_GRADIENT * count, shard) + all_reduce(_GRADIENT * count / shard.size, replicate)


def _tensor_traffic(load: RankLoad, tensor: Group) -> Transfer:
    """Of a micro-batch: two sums of hidden states per block forward (again where the backward runs it again), two
    backward; one for the embedding and one for the head's input; the head's logits, made twice, gathered."""
    size, tokens = element_size(load.precision), load.tokens
    passes = 3 if load.checkpointing == "full" else 2
    hidden = all_reduce(size * tokens * load.sizes.hidden_size, tensor)
    logits = gather(size * tokens * load.sizes.vocab_size, tensor)
    return hidden.times(2 * passes * load.sizes.num_hidden_layers + 2) + logits.times(2)

"""Settings that are a choice between words; a member's name is the spelling that users type."""

from __future__ import annotations

from enum import Enum


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Float8(str, Enum):
    """Whether the blocks' linear layers multiply 8-bit numbers, with one scale per tensor or one per row."""

    none = "none"
    tensorwise = "tensorwise"
    rowwise = "rowwise"


class LossKernel(str, Enum):
    """How the head's cross entropy is computed. auto: checkpointed under tensor parallelism, else fused.

    fused: by chunks of tokens, with their gradients at once. checkpointed: by chunks that the backward computes again.
    plain: all logits at once.
    """

    auto = "auto"
    fused = "fused"
    checkpointed = "checkpointed"
    plain = "plain"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DecayShape(str, Enum):
    linear = "linear"
    cosine = "cosine"
    one_minus_sqrt = "one_minus_sqrt"
    sqrt = "sqrt"  # another name of one_minus_sqrt
    exponential = "exponential"
    inverse = "inverse"


class DecayFracOf(str, Enum):
    target = "target"
    period = "period"


class WeightDecayStyle(str, Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class LrWsdDecayStyle(str, Enum):
    exponential = "exponential"
    linear = "linear"
    cosine = "cosine"
    minus_sqrt = "minus_sqrt"


class OnResume(str, Enum):
    strict = "strict"
    override = "override"
    use_checkpoint = "use_checkpoint"


class Overflow(str, Enum):
    truncate = "truncate"
    drop = "drop"


class OnBadLine(str, Enum):
    skip = "skip"
    error = "error"


class TokenCache(str, Enum):
    """Token ids on disk, read back without tokenizing; or lengths only. auto: ids where they fit."""

    auto = "auto"
    lengths = "lengths"
    tokens = "tokens"


class ReshardAfterForward(str, Enum):
    """Whether FSDP2 gives gathered weights back before the backward. default: those of the blocks."""

    default = "default"
    always = "always"
    never = "never"


class ActivationCheckpointing(str, Enum):
    """What a block computes again in the backward: nothing; all but matmuls and attention; all."""

    none = "none"
    selective = "selective"
    full = "full"


class AnomalyAction(str, Enum):
    """What happens at a loss or gradient that is not finite, or a spike: end the run, leave the batch out, or
    leave it out and go back to the last checkpoint."""

    stop = "stop"
    skip = "skip"
    rewind = "rewind"


class OnDamage(str, Enum):
    """A damaged checkpoint: take the one before it, or end."""

    fallback = "fallback"
    error = "error"


class HfExport(str, Enum):
    last = "last"
    milestones = "milestones"
    every = "every"
    never = "never"


class ExportDtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class GroupPreset(str, Enum):
    none = "none"
    by_type = "by_type"
    layerwise = "layerwise"


class MuonAdjustLr(str, Enum):
    """Muon's factor on lr: 0.2 * sqrt(max(rows, columns)), as large as AdamW's updates, so that one lr serves
    both; or sqrt(max(1, rows / columns)), where typical rates are ten times AdamW's (then lower adamw_lr_scale)."""

    match_rms_adamw = "match_rms_adamw"
    original = "original"


class WandbMode(str, Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


class InitMode(str, Enum):
    scratch = "scratch"
    resume = "resume"
    hf_pretrain = "hf_pretrain"


class NewTokens(str, Enum):
    """What the embedding rows of tokens begin as that a snapshot does not know."""

    normal = "normal"
    mean = "mean"


# Megatron-LM's spellings; one is no Python name.
LrDecayStyle = Enum(
    "LrDecayStyle",
    {
        "constant": "constant",
        "linear": "linear",
        "cosine": "cosine",
        "inverse-square-root": "inverse-square-root",
        "WSD": "WSD",
    },
)

# Whether training waits for a checkpoint's writing, or only for its copy to host memory. One is no Python name.
AsyncMode = Enum("AsyncMode", {"sync": "sync", "async": "async"})

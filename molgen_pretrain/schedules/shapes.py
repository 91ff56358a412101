"""Decay shapes: the value at progress p in [0, 1] between lr_max (p = 0) and lr_min (p = 1)."""

from __future__ import annotations

import math
from typing import Literal, get_args

DecayShape = Literal["linear", "cosine", "one_minus_sqrt", "exponential", "inverse"]
DECAY_SHAPES: tuple[str, ...] = get_args(DecayShape)

_OTHER_NAMES: dict[str, DecayShape] = {"sqrt": "one_minus_sqrt"}


def decay_lr(shape: DecayShape, progress: float, lr_max: float, lr_min: float) -> float:
    """Learning rate at `progress` of a decay; the two ends are returned exactly, and nothing outside them.

    linear: straight line. cosine: half a cosine (Loshchilov and Hutter 2017). one_minus_sqrt: 1 - sqrt(p)
    (Hägele et al. 2024, arXiv 2405.18392). exponential: 2 * 0.5**p - 1 of the span, as Megatron-LM has it.
    inverse: straight line of 1/lr (Wen et al. 2024, arXiv 2410.05192).
    """
    if progress <= 0.0:
        return lr_max
    if progress >= 1.0:
        return lr_min
    if shape == "inverse":
        lr = 1.0 / ((1.0 - progress) / lr_max + progress / lr_min)
    else:
        lr = lr_min + (lr_max - lr_min) * _remaining(shape, progress)
    return max(lr_min, min(lr_max, lr))


def _remaining(shape: DecayShape, progress: float) -> float:
    if shape == "linear":
        return 1.0 - progress
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if shape == "one_minus_sqrt":
        return 1.0 - math.sqrt(progress)
    if shape == "exponential":
        return 2.0 * 0.5**progress - 1.0
    raise ValueError(f"unknown decay shape {shape!r}")


def canonical_shape(name: str) -> str:
    """`name`, or what this project calls that shape ("sqrt" is one_minus_sqrt)."""
    return _OTHER_NAMES.get(name, name)


def shape_problems(shape: str, lr_min: float) -> list[str]:
    """Broken rules of a shape choice, as `field=value: rule`."""
    if shape not in DECAY_SHAPES:
        return [f"decay_shape={shape}: must be one of {', '.join(DECAY_SHAPES)}"]
    if shape == "inverse" and lr_min <= 0:
        return [f"lr_min={lr_min}: decay_shape=inverse needs lr_min > 0 (1/lr has no end otherwise)"]
    return []

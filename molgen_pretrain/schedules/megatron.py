"""Megatron-LM's schedules under Megatron-LM's own names (megatron/core/optimizer_param_scheduler.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from molgen_pretrain.schedules.base import NOT_STORED, Phase, Piece, Schedule, final_piece
from molgen_pretrain.schedules.shapes import DecayShape, decay_lr
from molgen_pretrain.schedules.spellings import also_spelled
from molgen_pretrain.schedules.warmup import lr_range_problems, warmup_init_problems, warmup_lr

LrDecayStyle = Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"]
LrWsdDecayStyle = Literal["exponential", "linear", "cosine", "minus_sqrt"]

_WSD_SHAPES: dict[LrWsdDecayStyle, DecayShape] = {
    "exponential": "exponential",
    "linear": "linear",
    "cosine": "cosine",
    "minus_sqrt": "one_minus_sqrt",
}


@also_spelled(lr="lr_max", lr_min="min_lr", train_iters="total_steps")
@dataclass(frozen=True, kw_only=True)
class Megatron(Schedule):
    """The learning rate that Megatron-LM gives the same settings, step for step.

    The names are Megatron's; `lr`, which is a method here, is stored as `lr_max`, and `train_iters` as
    `total_steps` (the constructor takes either). A warmup of `lr_warmup_fraction` (which wins over
    `lr_warmup_iters`) of the decay iterations is not rounded. The rate falls from the warmup's end to `min_lr`
    at `lr_decay_iters` (None: train_iters) and stays there; `constant` stays at `lr`, and
    `inverse-square-root` jumps to `min_lr` after `lr_decay_iters`. WSD falls over the last
    `lr_wsd_decay_iters`.

    `override_opt_param_scheduler` and `use_checkpoint_opt_param_scheduler` say what a resume does; they are
    not part of the curve.
    """

    lr_max: float
    min_lr: float = 0.0
    lr_decay_style: LrDecayStyle = "linear"
    lr_decay_iters: int | None = None
    lr_warmup_iters: int = 0
    lr_warmup_fraction: float | None = None
    lr_warmup_init: float = 0.0
    lr_wsd_decay_style: LrWsdDecayStyle = "exponential"
    lr_wsd_decay_iters: int | None = None
    override_opt_param_scheduler: bool = field(default=False, metadata=NOT_STORED)
    use_checkpoint_opt_param_scheduler: bool = field(default=False, metadata=NOT_STORED)

    @property
    def lr_min(self) -> float:
        """`min_lr` under the name that the other schedules have."""
        return self.min_lr

    @cached_property
    def lr_decay_steps(self) -> int:
        """The step at which the decay ends."""
        steps = self.total_steps if self.lr_decay_iters is None else self.lr_decay_iters
        assert steps is not None  # problems() demands one of the two
        return steps

    @cached_property
    def lr_warmup_steps(self) -> float:
        """The length of the warmup, not rounded where it is a fraction."""
        if self.lr_warmup_fraction is None:
            return self.lr_warmup_iters
        return self.lr_warmup_fraction * self.lr_decay_steps

    @property
    def wd_incr_steps(self) -> int | None:
        """Steps over which the weight decay changes."""
        return self.total_steps

    @property
    def wsd_decay_steps(self) -> int | None:
        """The length of WSD's decay."""
        return self.lr_wsd_decay_iters

    @property
    def computed(self) -> dict[str, float | None]:
        """What Megatron derives from its arguments, under its names."""
        return {
            "lr_warmup_steps": self.lr_warmup_steps,
            "lr_decay_steps": self.lr_decay_steps,
            "wd_incr_steps": self.wd_incr_steps,
            "wsd_decay_steps": self.wsd_decay_steps,
        }

    @property
    def milestones(self) -> tuple[int, ...]:
        end = self.lr_decay_steps
        if self.lr_decay_style in ("constant", "inverse-square-root"):
            return ()
        return (end,) if self.total_steps is None or end <= self.total_steps else ()

    def lr(self, step: int) -> float:
        if step <= self.lr_warmup_steps and self.lr_warmup_steps > 0:
            return warmup_lr(step, self.lr_warmup_steps, self.lr_warmup_init, self.lr_max)
        piece = self.piece(step)
        if piece.phase is Phase.STABLE:
            return self.lr_max
        if piece.phase is Phase.FINAL:
            return self.min_lr
        if self.lr_decay_style == "inverse-square-root":
            return max(self.min_lr, self.lr_max * math.sqrt(max(self.lr_warmup_steps, 1) / max(step, 1)))
        return decay_lr(self._shape, piece.progress(step), self.lr_max, self.min_lr)

    def piece(self, step: int) -> Piece:
        warmup, end, begin = self.lr_warmup_steps, self.lr_decay_steps, math.ceil(self.lr_warmup_steps)
        if step < warmup:
            return Piece(Phase.WARMUP, 0, begin - 1, 0, warmup)
        if self.lr_decay_style == "constant":
            return Piece(Phase.STABLE, begin, None, begin, math.inf)
        if step > end:
            return final_piece(end + 1)
        if self.lr_decay_style != "WSD":
            return Piece(Phase.DECAY, begin, end, warmup, end)
        assert self.lr_wsd_decay_iters is not None  # problems() demands it
        start = end - self.lr_wsd_decay_iters
        if step <= start:
            return Piece(Phase.STABLE, begin, start, warmup, start)
        return Piece(Phase.DECAY, max(begin, start + 1), end, start, end)

    @property
    def _shape(self) -> DecayShape:
        if self.lr_decay_style == "WSD":
            return _WSD_SHAPES[self.lr_wsd_decay_style]
        return "cosine" if self.lr_decay_style == "cosine" else "linear"

    def describe(self) -> str:
        style: str = self.lr_decay_style
        if style == "WSD":
            style += f" ({self.lr_wsd_decay_style})"
        computed = ", ".join(f"{name} {value}" for name, value in self.computed.items())
        return f"megatron: {style}, lr {self.lr_max:g}, min_lr {self.min_lr:g}; {computed}"

    def problems(self) -> list[str]:
        found = super().problems() + lr_range_problems(self.lr_max, self.min_lr, min_name="min_lr")
        found += warmup_init_problems(self.lr_warmup_init, self.lr_max, name="lr_warmup_init")
        return found + self._style_problems() + self._resume_problems() + self._length_problems()

    def _style_problems(self) -> list[str]:
        found = []
        for name, legal in (("lr_decay_style", get_args(LrDecayStyle)), ("lr_wsd_decay_style", tuple(_WSD_SHAPES))):
            if (value := getattr(self, name)) not in legal:
                found.append(f"{name}={value}: must be one of {', '.join(legal)}")
        if self.lr_decay_style == "WSD" and self.lr_wsd_decay_iters is None:
            found.append("lr_wsd_decay_iters=None: lr_decay_style=WSD needs it")
        if self.lr_wsd_decay_iters is not None and self.lr_wsd_decay_iters < 0:
            found.append(f"lr_wsd_decay_iters={self.lr_wsd_decay_iters}: must not be negative")
        return found

    def _resume_problems(self) -> list[str]:
        if self.override_opt_param_scheduler and self.use_checkpoint_opt_param_scheduler:
            return ["override_opt_param_scheduler=True: contradicts use_checkpoint_opt_param_scheduler=True; give one"]
        return []

    def _length_problems(self) -> list[str]:
        if self.lr_decay_iters is None and self.total_steps is None:
            return ["lr_decay_iters=None: give lr_decay_iters or train_iters"]
        found = []
        if self.lr_decay_steps < 1:
            found.append(f"lr_decay_iters={self.lr_decay_iters}: must be at least 1")
        if self.lr_warmup_iters < 0:
            found.append(f"lr_warmup_iters={self.lr_warmup_iters}: must not be negative")
        if self.lr_warmup_fraction is not None and not 0 <= self.lr_warmup_fraction < 1:
            found.append(f"lr_warmup_fraction={self.lr_warmup_fraction}: must be in [0, 1)")
        elif self.lr_warmup_steps >= self.lr_decay_steps:
            found.append(
                f"lr_warmup_iters={self.lr_warmup_steps:g}: must be below the {self.lr_decay_steps} decay iterations"
            )
        return found

"""Learning-rate and weight-decay schedules: frozen dataclasses, pure functions of the step.

Update n (counted from 1) runs with `schedule.lr(n)` and `schedule.weight_decay(n)`. Nothing here imports
torch; plots, previews, resume and training all call the same functions.
"""

from molgen_pretrain.schedules.anneal import Cosine, InverseSqrt, Linear
from molgen_pretrain.schedules.base import Phase, PhaseSpan, Schedule, ScheduleError, Window
from molgen_pretrain.schedules.constant import Constant
from molgen_pretrain.schedules.crossings import decay_crossings
from molgen_pretrain.schedules.megatron import Megatron
from molgen_pretrain.schedules.sgdr import SGDR
from molgen_pretrain.schedules.state import (
    carry_decisions,
    changed_fields,
    differences,
    schedule_from_state,
    schedule_state,
)
from molgen_pretrain.schedules.warmup import WarmupSchedule
from molgen_pretrain.schedules.wsd import WSD
from molgen_pretrain.schedules.wsd_adaptive import WSDAdaptive
from molgen_pretrain.schedules.wsds import WSDS

__all__ = [
    "SGDR",
    "WSD",
    "WSDS",
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Linear",
    "Megatron",
    "Phase",
    "PhaseSpan",
    "Schedule",
    "ScheduleError",
    "WSDAdaptive",
    "WarmupSchedule",
    "Window",
    "carry_decisions",
    "changed_fields",
    "decay_crossings",
    "differences",
    "schedule_from_state",
    "schedule_state",
]

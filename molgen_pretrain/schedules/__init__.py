"""Learning-rate and weight-decay schedules: frozen dataclasses, pure functions of the step.

Update n (counted from 1) runs with `schedule.lr(n)` and `schedule.weight_decay(n)`. Nothing here imports
torch; plots, previews, resume and training all call the same functions.
"""

from molgen_pretrain.schedules.base import Phase, Schedule, ScheduleError
from molgen_pretrain.schedules.constant import Constant
from molgen_pretrain.schedules.state import differences, schedule_from_state, schedule_state
from molgen_pretrain.schedules.wsds import WSDS, Window

__all__ = [
    "WSDS",
    "Constant",
    "Phase",
    "Schedule",
    "ScheduleError",
    "Window",
    "differences",
    "schedule_from_state",
    "schedule_state",
]

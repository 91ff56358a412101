"""What a Slurm job asks for, and the mistakes that can be found before Slurm is asked."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from molgen_pretrain.errors import UserError

_AT_LEAST = {
    "timeout_min": 1,
    "nodes": 1,
    "tasks_per_node": 1,
    "cpus_per_task": 1,
    "gpus_per_node": 0,
    "gpus_per_task": 1,
    "mem_gb": 0,
    "signal_delay_s": 0,
    "array_parallelism": 1,
    "max_requeues": 0,
}
# Flags of sbatch that are settings here under another name.
_SETTING_OF = {
    "time": "timeout_min",
    "mem": "mem_gb",
    "ntasks-per-node": "tasks_per_node",
    "signal": "signal_delay_s",
    "array": "array_parallelism",
}
_FIXED = ("requeue", "no-requeue", "open-mode", "output", "error", "dependency", "kill-on-invalid-dep", "ntasks")
_PYTHON = shlex.quote(sys.executable)
# Bound for a moment on the first node, where rank 0 will listen.
_FREE_PORT = 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'


@dataclass
class SlurmSettings:
    """Names are those of submitit and sbatch; what is None is not in the script, so the cluster's default holds.

    Raises UserError, naming `hydra.launcher.KEY`, for values that cannot be.
    """

    job_name: str = "molgen-pretrain"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    timeout_min: int | None = None
    nodes: int = 1
    tasks_per_node: int = 1  # ranks: one for each GPU, as a rule
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    mem_gb: float | None = None  # per node; 0 is all of its memory
    mem_per_gpu: str | None = None  # with Slurm's unit: 80G
    mem_per_cpu: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    gres: str | None = None
    exclusive: bool | None = None
    comment: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    signal_delay_s: int = 120  # from the signal to the time limit: what a save may take, and 20 s
    array_parallelism: int | None = None  # jobs of an array that run at a time
    setup: list[str] = field(default_factory=list)  # lines of shell before srun
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # any other #SBATCH flag
    srun_args: list[str] = field(default_factory=list)
    max_requeues: int | None = None  # None: as often as it takes
    detach: bool = False  # submit and return
    poll_seconds: float = 15.0  # between two looks at the queue

    def __post_init__(self) -> None:
        for key, least in _AT_LEAST.items():
            value = self.__dict__[key]
            if value is not None and value < least:
                raise wrong(key, value, f"must be at least {least}")
        if not self.poll_seconds > 0:
            raise wrong("poll_seconds", self.poll_seconds, "must be above 0 (15 spares Slurm)")
        if self.timeout_min is not None and self.signal_delay_s >= 60 * self.timeout_min:
            rule = f"must be shorter than timeout_min={self.timeout_min} ({60 * self.timeout_min} s)"
            raise wrong("signal_delay_s", self.signal_delay_s, f"{rule}, or a job is told to stop as it starts")
        memory = [key for key in ("mem_gb", "mem_per_gpu", "mem_per_cpu") if self.__dict__[key] is not None]
        if len(memory) > 1:
            rule = f"is given together with {', '.join(memory[1:])}"
            raise wrong(memory[0], self.__dict__[memory[0]], f"{rule}; Slurm takes one of them: set the others to null")
        for key, value in self.additional_parameters.items():
            self._check_additional(key, value)

    def _check_additional(self, key: str, value: Any) -> None:
        name = key.lstrip("-").replace("_", "-")
        setting = _SETTING_OF.get(name, name.replace("-", "_"))
        where = f"additional_parameters.{key}"
        if name in _FIXED:
            raise wrong(where, value, "is decided by the launcher, which needs it as it is; remove it")
        if setting in {each.name for each in fields(SlurmSettings)}:
            raise wrong(where, value, f"is a setting of its own: hydra.launcher.{setting}={value}")

    @property
    def ranks(self) -> int:
        return self.nodes * self.tasks_per_node

    def slurm_parameters(self, dependency: str | None = None) -> dict[str, Any]:
        """For `update_parameters` of submitit's SlurmExecutor.

        `dependency`: what sbatch calls so; a job is cancelled once it cannot be fulfilled any more.
        """
        additional = {"requeue": True, **({"kill-on-invalid-dep": "yes"} if dependency else {})}
        additional |= {k.lstrip("-"): v for k, v in self.additional_parameters.items() if v not in (None, False)}
        return {
            "job_name": self.job_name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.timeout_min,
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks_per_node,
            "cpus_per_task": self.cpus_per_task,
            "gpus_per_node": self.gpus_per_node or None,
            "gpus_per_task": self.gpus_per_task,
            "mem": None if self.mem_gb is None else _whole_units(self.mem_gb),
            "mem_per_gpu": self.mem_per_gpu,
            "mem_per_cpu": self.mem_per_cpu,
            "constraint": self.constraint,
            "exclude": self.exclude,
            "nodelist": self.nodelist,
            "gres": self.gres,
            "exclusive": self.exclusive or None,
            "comment": self.comment,
            "mail_type": self.mail_type,
            "mail_user": self.mail_user,
            "dependency": dependency,
            "wckey": None,  # submitit's own is refused where clusters check it
            "stderr_to_stdout": True,
            "signal_delay_s": self.signal_delay_s,
            **({"array_parallelism": self.array_parallelism} if self.array_parallelism else {}),
            "setup": self._setup_lines(),
            "teardown": [self._last_line()],
            "srun_args": self.srun_args,
            "additional_parameters": additional,
        }

    def local_parameters(self, visible_gpus: list[int]) -> dict[str, Any]:
        """For `update_parameters` of submitit's LocalExecutor, on a machine where `visible_gpus` may be used.

        Raises UserError for what there can only be on a cluster.
        """
        if self.nodes > 1:
            raise wrong(
                "nodes", self.nodes, "slurm_local is this machine alone; set it to 1, or use hydra/launcher=slurm"
            )
        if self.setup:
            raise wrong("setup", self.setup, "slurm_local runs in the environment of this shell; leave it empty")
        gpus = len(visible_gpus) if self.gpus_per_node is None else self.gpus_per_node
        if gpus > len(visible_gpus):
            raise wrong("gpus_per_node", gpus, f"this machine shows {len(visible_gpus)}")
        return {
            "timeout_min": self.timeout_min or 525_600,  # a year: submitit has no other word for no limit
            "tasks_per_node": self.tasks_per_node,
            "gpus_per_node": gpus,
            "visible_gpus": visible_gpus,
            "signal_delay_s": self.signal_delay_s,
            "stderr_to_stdout": True,
        }

    def _setup_lines(self) -> list[str]:
        return [
            *self.setup,
            # A rank that fails ends the others, and so the job fails.
            "export SLURM_KILL_BAD_EXIT=1",
            # srun does not take it over from sbatch by itself.
            '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
            f'[ -n "$MASTER_PORT" ] || export MASTER_PORT="$({_PYTHON} -c {shlex.quote(_FREE_PORT)})"',
        ]

    def _last_line(self) -> str:
        """Ranks requeue their job; this does for those that a signal ended before they could."""
        limit = "" if self.max_requeues is None else f" {self.max_requeues}"
        return f"exec {_PYTHON} -m molgen_pretrain.launchers.requeue $?{limit}"


def _whole_units(gigabytes: float) -> str:
    """Slurm takes no fractions."""
    return f"{int(gigabytes)}G" if gigabytes == int(gigabytes) else f"{round(gigabytes * 1024)}M"


def wrong(key: str, value: object, rule: str) -> UserError:
    """The mistake in a setting of the launcher."""
    return UserError(f"hydra.launcher.{key}={value}: {rule}")

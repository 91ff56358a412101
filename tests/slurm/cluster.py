"""A throw-away Slurm on loopback: slurmctld and several emulated nodes as children of the test process."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
# Debian installs the daemons where only root's PATH looks.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
# States after which Slurm does not touch a job any more, unless somebody asks it to.
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED TIMEOUT".split()  # noqa: SIM905
)

# KillWait and cred_expire bring a requeue down from minutes to seconds. cons_tres with a memory default, or each
# job takes a whole node; config_overrides, or a node may not have more CPUs than this machine.
_CONFIG = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_per_cpu_mib}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""


class Cluster:
    """Two nodes in the partition `main`, which is the default, and two in `low`, whose jobs `high` preempts.

    Nodes have numeric names, which are addresses as they stand: `127.0.0.1` serves as MASTER_ADDR with no
    entry in /etc/hosts.
    """

    def __init__(self, *, cpus: int = 32, grace_seconds: int = 30) -> None:
        self.nodes = [f"127.0.0.{i}" for i in range(1, 5)]
        self._cpus = cpus  # of a node, on paper
        self._grace_seconds = grace_seconds  # between the signal and the end of a preempted job
        # A short path of its own, since unix sockets and spool folders of root live in it.
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.env = {"SLURM_CONF": str(self.root / "slurm.conf"), "PATH": SEARCH_PATH}
        self._daemons: list[subprocess.Popen[bytes]] = []
        # Sees the end of this pipe also where the test process is killed.
        self._reaper = subprocess.Popen(
            [sys.executable, __file__, str(self.root)], stdin=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of the cluster's user prints."""
        done = subprocess.run(command, env={**_without_slurm(), **self.env}, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`; for a whole array those of its first task."""
        lines = self.run("scontrol", "show", "job", "-o", job).splitlines()
        return dict(re.findall(r"(\S+?)=(\S*)", lines[0]))

    def state(self, job: str) -> str:
        """A compact state: RUNNING, PENDING, COMPLETED, ..."""
        return self.show(job)["JobState"]

    def wait(self, job: str, *states: str, seconds: float) -> dict[str, str]:
        """Wait until the job is in one of `states` (any end by default); returns its fields."""
        wanted = frozenset(states) or ENDED
        deadline = time.monotonic() + seconds
        while (fields := self.show(job))["JobState"] not in wanted:
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is not {sorted(wanted)} after {seconds} s: {fields}")
            time.sleep(0.2)
        return fields

    def stop(self) -> None:
        """End the daemons and all their jobs; nothing is left of them."""
        self._reaper.communicate()
        for daemon in self._daemons:
            daemon.wait()

    def _start(self) -> None:
        (self.root / "state").mkdir()
        (self.root / "slurm.conf").write_text(self._config())
        with open(self.root / "daemons.out", "ab") as output:
            for name, *arguments in (["slurmctld", "-i"], *(["slurmd", "-N", node] for node in self.nodes)):
                daemon = subprocess.Popen(
                    (name, "-D", *arguments, "-f", self.env["SLURM_CONF"]),  # in the foreground
                    env={**_without_slurm(), **self.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._daemons.append(daemon)
        deadline = time.monotonic() + 30
        question = ("sinfo", "-h", "-N", "-p", "main,low", "-o", "%T")
        while self.run(*question, check=False).split() != ["idle"] * len(self.nodes):
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                logs = [*self.root.glob("*.log"), self.root / "daemons.out"]
                raise RuntimeError("\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in logs))
            time.sleep(0.05)

    def _config(self) -> str:
        host, memory_mib = socket.gethostname(), 1000 * self._cpus
        port, *ports = _free_ports(1 + len(self.nodes))
        text = _CONFIG.format(
            host=host,
            port=port,
            user=getpass.getuser(),
            root=self.root,
            memory_per_cpu_mib=memory_mib // self._cpus,
            # Credentials of an earlier cluster's job of the same number would be taken for replayed ones.
            first_job=1000 + os.getpid() % 60000,
        )
        for node, node_port in zip(self.nodes, ports, strict=True):
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={self._cpus}"
            text += f" RealMemory={memory_mib} State=UNKNOWN\n"
        main, low = ",".join(self.nodes[:2]), ",".join(self.nodes[2:])
        partition = "PartitionName={} Nodes={} MaxTime=INFINITE State=UP {}\n"
        text += partition.format("main", main, "Default=YES PreemptMode=OFF")
        text += partition.format("low", low, f"PriorityTier=1 GraceTime={self._grace_seconds}")
        return text + partition.format("high", low, "PriorityTier=10 PreemptMode=OFF")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _without_slurm() -> dict[str, str]:
    """This process's environment as on a login node, also where the tests themselves run in a Slurm job."""
    names = ("SLURM", "SBATCH", "SUBMITIT", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
    return {name: value for name, value in os.environ.items() if not name.startswith(names)}


def _reap(root: Path) -> None:
    """Kill all that runs with this cluster's configuration: daemons, jobs, and commands that wait for them."""
    mark = f"SLURM_CONF={root}/slurm.conf".encode()
    while found := [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if mark in _environment(entry)]:
        for process in sorted(found):  # slurmctld first, which would start others
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(root, ignore_errors=True)


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _reap(Path(sys.argv[1]))

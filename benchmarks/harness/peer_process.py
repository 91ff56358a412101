"""Other trainers, each in a process of its own, on the same model and data as a run of the application."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.application import Workplace, finished

PEERS = Path(__file__).resolve().parents[1] / "peers"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a peer trains; `packed` and `units` are files of `equal_data`, of which it takes one."""

    sizes: dict[str, object]  # in the names of the Hugging Face config
    dtype: str
    batch: int
    seq_len: int
    steps: int
    every: int  # steps between two times that are taken
    packed: str | None = None
    units: str | None = None
    tokenizer: str = ""
    lr: float = 3e-4
    compile: bool = False
    workers: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Measured:
    """Tokens per second of each interval after the first; most memory that was in use, and that of the imports."""

    tokens_per_second: list[float]
    memory_gib: float
    imports_gib: float


def run_peer(
    name: str, work: Work, workplace: Workplace, *, python: str = sys.executable, timeout_seconds: float | None = None
) -> Measured:
    """Train with `peers/<name>.py`. Raises what `finished` does."""
    spec = json.dumps({**asdict(work), "port": free_port()})
    command = [python, str(PEERS / f"{name}.py"), spec]
    output = finished(command, workplace.environment(), timeout_seconds)
    found = json.loads(output.splitlines()[-1])
    return Measured(found["tokens_per_second"], found["memory_gib"], found["imports_gib"])


def lacks(python: str, *modules: str) -> str | None:
    """Which of these modules a Python does not find, as a reason to leave something out; None where it has all."""
    code = "import importlib.util as u, sys; print(*(m for m in sys.argv[1:] if u.find_spec(m) is None), sep=', ')"
    found = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True, check=True)
    return f"not installed: {found.stdout.strip()}" if found.stdout.strip() else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

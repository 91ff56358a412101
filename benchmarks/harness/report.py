"""A benchmark's result: the machine it ran on and its tables, as Markdown that is printed and kept.

    report = Report("steady", "Step time and memory over 200 steps", options.results)
    report.table(("step", "seconds"), [(1, "0.20")])

prints as it goes and, given a folder, rewrites `<folder>/<machine>/<name>.md` after each addition: what has been
measured is kept whatever happens next.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "transformers")
# What decides how fast a CPU multiplies, as Linux names it.
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def add_results_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder that keeps results (default: %(default)s)"
    )
    parser.add_argument("--no-results", dest="results", action="store_const", const=None, help="print only")


class Report:
    """Markdown under a title and a description of this machine; `folder` None: printed only."""

    def __init__(self, name: str, title: str, folder: Path | None) -> None:
        self._path = None if folder is None else folder / machine_slug() / f"{name}.md"
        self._text = ""
        self.add(f"# {title}\n\n{describe_machine()}")

    def add(self, markdown: str) -> None:
        """A paragraph, heading or table; printed and written at once."""
        self._write(f"{markdown}\n\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; each row stands as soon as `rows` gives it. The first column is text, the others are numbers."""
        self._write(_line(columns) + _line(["---", *["---:"] * (len(columns) - 1)]))
        for row in rows:
            self._write(_line(row))
        self._write("\n")

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)
        self._text += text
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = self._path.with_suffix(".tmp")
            aside.write_text(self._text.rstrip() + "\n")
            os.replace(aside, self._path)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def describe_machine() -> str:
    """Date, commit, processor, memory, GPUs and versions, one line each."""
    cores, gpus = usable_cores(), gpu_names()
    features = ", ".join(cpu_features()) or "features unknown"
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {commit()}",
        f"CPU: {cpu_model()}, {cores} cores ({features}), {memory_gib():.0f} GiB",
        *([f"GPU: {len(gpus)} x {gpus[0]}"] if gpus else []),
        ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]),
    ]
    return "\n".join(f"- {line}" for line in lines)


def machine_slug() -> str:
    """A folder's name for machines like this one: `cpu-2x-amd-epyc`, `gpu-1x-nvidia-h200`."""
    gpus = gpu_names()
    kind, count, model = ("gpu", len(gpus), gpus[0]) if gpus else ("cpu", usable_cores(), cpu_model())
    return f"{kind}-{count}x-" + re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    flags = (_cpu_info("flags") or _cpu_info("Features")).split()
    return [name for name in CPU_FEATURES if name in flags]


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def gpu_names() -> list[str]:
    """CUDA devices as the driver names them; none without nvidia-smi, or where they are hidden."""
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[:-1] if found.returncode == 0 else []


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def commit() -> str:
    """The checkout's commit, and whether files differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "molgen_pretrain", "conf")
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {head}" + (" with changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_info(key: str) -> str:
    """The first value of a key of Linux' /proc/cpuinfo; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return ""
    found = re.search(rf"^{key}\s*: (.*)$", file.read_text(), re.MULTILINE)
    return found[1] if found else ""

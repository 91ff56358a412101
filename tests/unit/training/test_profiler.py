"""Profiling a few steps of a small loop on the CPU: the files, and what the table says."""

from __future__ import annotations

import gzip
import json
import logging
import re
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import record_function

from molgen_pretrain.metrics.trace import profile_of, read_trace
from molgen_pretrain.training.profiler import StepProfiler

CPU = torch.device("cpu")


def train(profiler: StepProfiler, begin: int, end: int, saves_at: int = 0) -> dict[int, float]:
    """The seconds that each step took."""
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 32))
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = {}
    for step in range(begin, end + 1):
        with profiler.around(step, is_plain=step != saves_at):
            began = time.perf_counter()
            with record_function("data"):
                rows = torch.randn(128, 256)
                time.sleep(0.005)
            with record_function("forward"):
                loss = cross_entropy(model(rows), torch.zeros(128, dtype=torch.long))
            with record_function("backward"):
                loss.backward()
            with record_function("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            seconds[step] = time.perf_counter() - began
    return seconds


def test_trace_and_table_of_the_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with StepProfiler([3, 5], tmp_path / "profile", rank=0, device=CPU) as profiler:
        seconds = train(profiler, 1, 7)
    trace, table = (tmp_path / "profile" / f"steps-3-5{suffix}" for suffix in (".json.gz", ".txt"))
    assert {trace, table} == set((tmp_path / "profile").iterdir())
    assert str(table) in caplog.text
    names = [event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert [name for name in names if name.startswith("step ")] == ["step 3", "step 4", "step 5"]
    assert names.count("aten::addmm") == 6

    found = profile_of(read_trace(trace))
    assert sum(found.kinds.values()) == pytest.approx(found.total_us)
    assert sum(operator.us for operator in found.operators) == pytest.approx(found.total_us)
    assert found.total_us / 1e6 == pytest.approx(sum(seconds[n] for n in (3, 4, 5)), rel=0.2, abs=2e-3)
    assert found.kinds["data wait"] >= 3 * 5000
    assert min(found.kinds[kind] for kind in ("matmul", "loss", "optimizer and clipping", "element-wise and casts")) > 0

    text = table.read_text()
    assert text.startswith("Profile of steps 3 to 5 on CPU, rank 0:")
    shares = dict(re.findall(r"^  (\S.*?) +\d+\.\d\d +(\d+\.\d)%$", text, re.MULTILINE))
    assert float(shares["matmul"]) == pytest.approx(100 * found.kinds["matmul"] / found.total_us, abs=0.06)
    assert float(shares.pop("total")) == pytest.approx(sum(map(float, shares.values())), abs=0.5)


def test_a_run_that_goes_on_later_profiles_what_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StepProfiler([3, 5], tmp_path / "left", rank=1, device=CPU) as profiler:
        train(profiler, 5, 6)
    assert {file.name for file in (tmp_path / "left").iterdir()} == {"steps-5-5.rank1.json.gz", "steps-5-5.rank1.txt"}
    with StepProfiler([3, 5], tmp_path / "past", rank=0, device=CPU) as profiler:
        train(profiler, 6, 8)
    assert caplog.text.count("training.profile_steps=[3, 5]: the run is at step 6") == 1
    assert not (tmp_path / "past").exists()


def test_a_run_that_ends_early_keeps_what_was_profiled(tmp_path: Path) -> None:
    with StepProfiler([2, 9], tmp_path, rank=0, device=CPU) as profiler:
        train(profiler, 1, 3)
    assert (tmp_path / "steps-2-3.txt").read_text().startswith("Profile of steps 2 to 3")


def test_a_save_ends_the_profile_before_its_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with StepProfiler([2, 5], tmp_path / "cut", rank=0, device=CPU) as profiler:
        train(profiler, 1, 7, saves_at=4)
    assert {file.name for file in (tmp_path / "cut").iterdir()} == {"steps-2-3.json.gz", "steps-2-3.txt"}
    with StepProfiler([4, 5], tmp_path / "late", rank=0, device=CPU) as profiler:
        train(profiler, 1, 7, saves_at=4)
    assert {file.name for file in (tmp_path / "late").iterdir()} == {"steps-5-5.json.gz", "steps-5-5.txt"}
    with StepProfiler([5, 5], tmp_path / "after", rank=0, device=CPU) as profiler:
        train(profiler, 1, 7, saves_at=4)
    assert (tmp_path / "after" / "steps-5-5.txt").exists()
    assert caplog.text.count("step 4 validates or saves, and is left out") == 2


def test_an_error_is_not_hidden_and_the_next_profile_works(tmp_path: Path) -> None:
    with (
        pytest.raises(FloatingPointError),
        StepProfiler([1, 2], tmp_path / "failed", rank=0, device=CPU) as profiler,
        profiler.around(1),
    ):
        raise FloatingPointError
    assert not (tmp_path / "failed").exists()
    with StepProfiler([1, 1], tmp_path / "next", rank=0, device=CPU) as profiler:
        train(profiler, 1, 1)
    assert (tmp_path / "next" / "steps-1-1.txt").exists()


def test_nothing_happens_unless_it_is_asked_for(tmp_path: Path) -> None:
    with StepProfiler([], tmp_path, rank=0, device=CPU) as profiler:
        train(profiler, 1, 2)
        assert not torch.autograd._profiler_enabled()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("a file, where a folder has to be made")
    with StepProfiler([1, 1], tmp_path / "profile", rank=0, device=CPU) as profiler:
        assert list(train(profiler, 1, 2)) == [1, 2]
    assert "is not written" in caplog.text

"""The same runs on a CUDA device; skipped where there is none."""

import os
import signal

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def gpu_app(app):
    app.env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return app


@pytest.fixture(scope="module")
def on_cpu(app_factory, tiny):
    return app_factory("on_cpu").run(*tiny)[1]


def test_float32_losses_are_those_of_the_cpu(gpu_app, tiny, on_cpu) -> None:
    output, run = gpu_app.run(*tiny, "training.device=cuda")
    assert "single on 1 x cuda" in output
    for step, row in on_cpu.rows().items():
        assert run.rows()[step]["tokens"] == row["tokens"]
        assert run.rows()[step]["loss"] == pytest.approx(row["loss"], rel=5e-3)


@pytest.mark.parametrize("layout", ["single", "fsdp"])
def test_bfloat16_trains_reports_mfu_and_resumes(gpu_app, tiny, on_cpu, layout: str) -> None:
    options = (*tiny, "training.device=cuda", "training.dtype=bfloat16", f"parallelism={layout}", "run_name=bf16")
    gpu_app.interrupt(*options, after_step=18, by=signal.SIGTERM)
    _, run = gpu_app.run(*options)
    rows = run.rows()
    assert list(rows) == list(range(1, 41))
    assert rows[40]["loss"] == pytest.approx(on_cpu.rows()[40]["loss"], rel=0.05)
    assert 0 <= rows[40]["data_wait_frac"] <= 1
    assert rows[40]["memory_gib"] > 0

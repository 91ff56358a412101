"""Profiles of a GPU, from traces as torch.profiler writes them: what is hidden behind what, and who waits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from molgen_pretrain.metrics.trace import Profile, profile_of, read_trace
from molgen_pretrain.metrics.trace_kinds import kernel_kind, operator_kind, region_of
from molgen_pretrain.metrics.trace_text import profile_text

LOOP, STREAM, SIDE_STREAM = 100, 7, 20  # threads of a trace


def event(
    category: str, name: str, start: float, length: float, thread: int, link: int | None = None
) -> dict[str, Any]:
    args = {} if link is None else {"External id": link}
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": thread, "args": args}


def host(name: str, start: float, length: float, link: int | None = None) -> dict[str, Any]:
    return event("cpu_op" if "::" in name else "user_annotation", name, start, length, LOOP, link)


@pytest.fixture
def gpu(tmp_path: Path) -> Profile:
    """A step of 1,000 microseconds on the host; the device is busy until 1,200."""
    events = [
        host("step 8", 0, 1000),
        host("data", 0, 100),
        host("forward", 100, 100),
        host("aten::linear", 110, 30, 1),
        host("aten::mm", 112, 20, 2),
        host("aten::rms_norm", 150, 20, 3),
        host("optimizer", 300, 100),
        host("Optimizer.step#AdamW.step", 305, 90),
        host("aten::_fused_adamw_", 310, 50, 4),
        host("aten::item", 500, 400, 5),
        host("aten::_local_scalar_dense", 505, 390, 6),
        event("cuda_runtime", "cudaStreamSynchronize", 600, 290, LOOP, 6),
        event("cuda_runtime", "cudaDeviceSynchronize", 2000, 10, LOOP),  # after the step: the profiler's own
        event("kernel", "nvjet_tst_128x256", 200, 300, STREAM, 2),
        event("kernel", "ncclDevKernel_AllGather_RING_LL", 400, 200, SIDE_STREAM, 9),  # 100 of 200 hidden
        event("kernel", "vectorized_layer_norm_kernel", 650, 50, STREAM, 3),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 890, 10, STREAM, 6),
        event("kernel", "multi_tensor_apply_kernel", 1100, 100, STREAM, 4),
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 1, "tid": 1},
    ]
    file = tmp_path / "steps.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    return profile_of(read_trace(file))


def test_each_moment_of_the_device_counts_once(gpu: Profile) -> None:
    assert gpu.total_us == 1200
    assert gpu.kinds == {
        "data wait": 100,
        "matmul": 300,
        "communication": 100,
        "element-wise and casts": 50,
        "copies": 10,
        "optimizer and clipping": 100,
        "idle": 540,
    }
    assert gpu.communication_us == 200
    assert (gpu.operators[0].name, gpu.operators[0].us) == ("nvjet_tst_128x256 (aten::mm)", 300)


def test_waits_for_the_device_are_found_with_their_place(gpu: Profile) -> None:
    found = {(wait.name, wait.place): (wait.calls, wait.us) for wait in gpu.waits}
    assert found == {
        ("cudaStreamSynchronize", "aten::_local_scalar_dense in aten::item"): (1, 290),
        ("Memcpy DtoH (Device -> Pageable)", ""): (1, 10),
    }
    text = profile_text(gpu, "H200, rank 0")
    assert "Profile of step 8 on H200, rank 0: 1.2 ms per step" in text
    assert "cudaStreamSynchronize in aten::_local_scalar_dense in aten::item: 1 per step, 0.29 ms" in text


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::scaled_dot_product_attention", "aten::matmul"], "attention"),  # the math backend
        (["loss", "aten::mm"], "matmul"),
        (["loss", "aten::exp"], "loss"),
        (["optimizer", "aten::mul_"], "optimizer and clipping"),
        (["clip", "c10d::allreduce_"], "communication"),
        (["forward", "aten::mul"], "element-wise and casts"),
        (["aten::cat"], "copies"),
        (["autograd::engine::evaluate_function: MulBackward0"], "rest"),
    ],
)
def test_kinds_of_operators(names: list[str], kind: str) -> None:
    region = None
    for name in names:
        region = region_of(name, region)
    assert operator_kind(names[-1], region, is_region=False, is_cast=False) == kind


@pytest.mark.parametrize(
    ("kernel", "launched_for", "kind"),
    [
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "matmul", "matmul"),
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90>", "attention", "attention"),
        ("triton_poi_fused_scaled_dot_product_attention_mul", None, "element-wise and casts"),
        ("triton_tem_fused_mm", None, "matmul"),
        ("Memcpy HtoD (Pinned -> Device)", "data wait", "copies"),
        ("vectorized_elementwise_kernel", "loss", "loss"),
    ],
)
def test_kinds_of_kernels(kernel: str, launched_for: str | None, kind: str) -> None:
    assert kernel_kind(kernel, launched_for) == kind


def test_a_trace_without_steps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.json.gz"
    file.write_bytes(gzip.compress(b'{"traceEvents": []}'))
    with pytest.raises(ValueError, match="no step"):
        profile_of(read_trace(file))

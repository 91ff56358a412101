"""What a span of a profile does, told by its name: PyTorch operators, our regions of a step, and CUDA kernels."""

from __future__ import annotations

import re
from functools import cache

MATMUL = "matmul"
ATTENTION = "attention"
ELEMENTWISE = "element-wise and casts"
LOSS = "loss"
OPTIMIZER = "optimizer and clipping"
COMMUNICATION = "communication"
COPIES = "copies"
DATA = "data wait"
REST = "rest"
IDLE = "idle"
KINDS = (MATMUL, ATTENTION, ELEMENTWISE, LOSS, OPTIMIZER, COMMUNICATION, COPIES, DATA, REST, IDLE)

# In each table the first pattern that fits the beginning of a name decides.
# A region gives its kind to all that runs in it, but a loss leaves matmuls what they are: the head is one of them.
_REGIONS = (
    (DATA, r"data$"),
    (OPTIMIZER, r"optimizer$|clip$|Optimizer\."),
    (COMMUNICATION, r"c10d|_c10d_functional|nccl|gloo|record_param_comms|FSDP::|fsdp::"),
    (ATTENTION, r"aten::_?(scaled_dot_product|flash_attention|efficient_attention|cudnn_attention)|.*varlen_attn"),
    (LOSS, r"loss$|aten::(cross_entropy|nll_loss|_?log_softmax|logsumexp)|.*(CrossEntropy|LogSoftmax|NllLoss)"),
)
_OPERATORS = (
    (REST, r"autograd::engine|(?!CompiledFunction).*Backward\d*$|TorchDynamo|Torch-Compiled"),
    (MATMUL, r"(aten|mkldnn)::_?(linear|addmm|mm|bmm|baddbmm|matmul|mv|dot|scaled_mm|grouped_mm|mkldnn_\w*linear)"),
    (COPIES, r"aten::(copy_|clone|contiguous|cat|stack)$"),
)
_KERNELS = (
    (COMMUNICATION, r"nccl"),
    (COPIES, r"Memcpy|Memset"),
    (MATMUL, r"triton_tem"),
    (ELEMENTWISE, r"triton_"),  # inductor names its kernels after all operators that it has fused
    (ATTENTION, r".*(flash|fmha|attention|sdpa)"),
    (MATMUL, r".*(gemm|nvjet|cutlass|cublas|wgmma|splitK)"),
    (OPTIMIZER, r".*(FusedAdam|fused_adam|multi_tensor_apply)"),
)


def region_of(name: str, around: str | None) -> str | None:
    """The kind of the innermost region that an operator or a region of this name is, or runs in (`around`)."""
    return _first(name, _REGIONS) or around


def operator_kind(name: str, region: str | None, *, is_region: bool, is_cast: bool) -> str:
    """Of the time that an operator takes itself. `is_cast`: it runs within a change of dtype.

    A region's own time is Python between operators.
    """
    if region is not None and region != LOSS:
        return region
    kind = REST if is_region else _first(name, _OPERATORS) or ELEMENTWISE
    if kind == COPIES and is_cast:
        kind = ELEMENTWISE
    return LOSS if region == LOSS and kind in (ELEMENTWISE, COPIES) else kind


def kernel_kind(name: str, launched_for: str | None) -> str:
    """Of a kernel or a copy on the device. `launched_for`: the kind of the operator that did."""
    if launched_for in (ATTENTION, OPTIMIZER, COMMUNICATION):
        return launched_for
    known = _first(name, _KERNELS)
    if known is not None:
        return known
    return ELEMENTWISE if launched_for in (None, REST) else launched_for


@cache
def _first(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((kind for kind, pattern in table if re.match(pattern, name)), None)

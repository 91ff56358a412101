"""What a run measures and where it writes it: reductions, rates, memory, sinks, closing picture and table.

The names below import neither torch nor matplotlib nor rich. The other public functions are taken from
their modules: `reduce` (torch), `memory`, `console` and `summary` (rich), `curves` (matplotlib).
"""

from molgen_pretrain.metrics.jsonl import JsonlSink
from molgen_pretrain.metrics.logger import MetricsLogger, Sink
from molgen_pretrain.metrics.rows import Row, read_rows
from molgen_pretrain.metrics.tensorboard import TensorBoardSink
from molgen_pretrain.metrics.throughput import Throughput, peak_flops
from molgen_pretrain.metrics.wandb import WandbSink

__all__ = [
    "JsonlSink",
    "MetricsLogger",
    "Row",
    "Sink",
    "TensorBoardSink",
    "Throughput",
    "WandbSink",
    "peak_flops",
    "read_rows",
]

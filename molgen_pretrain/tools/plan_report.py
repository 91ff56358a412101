"""The text of a plan, for rich's console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from molgen_pretrain.metrics.formats import format_count, format_percent
from molgen_pretrain.planning.memory import GIB, MOMENTS
from molgen_pretrain.planning.scaling import Step
from molgen_pretrain.tools.plan_figures import PROCESS_BYTES, Figures

_KINDS = {
    "weights": "weights (float32)",
    "gradients": "gradients (float32)",
    "optimizer": "optimizer state (float32)",
    "copies": "weights gathered or cast, gradients on their way",
    "activations": "activations",
    "loss": "loss workspace",
    "working": "working memory of a backward",
    "batches": "batches",
}


def report(figures: Figures) -> Iterator[RenderableType]:
    """Everything, in the order in which a run is planned."""
    yield from _model(figures)
    yield from _memory(figures)
    yield from _data(figures)
    if figures.alone is None:
        return
    yield from _scaling(figures)


def _model(figures: Figures) -> Iterator[RenderableType]:
    count, flops = figures.parameters, figures.flops
    tied = "tied to the head" if figures.run.load.sizes.tie_word_embeddings else f"and a head of {count.head:,}"
    yield Text(f"{count.total:,} parameters, all trained", style="bold")
    yield Text(f"  embedding {count.embedding:,} {tied}; {count.blocks} blocks of {count.block:,}")
    yield Text(
        f"FLOPs per token: {format_flops(flops.forward)} forward, {format_flops(flops.backward)} backward;"
        f" attention {format_percent(flops.attention_share)}, head {format_percent(flops.head_share)}"
    )


def _memory(figures: Figures) -> Iterator[RenderableType]:
    load, gpu = figures.run.load, figures.gpu
    place = "GPU" if figures.run.on_gpu else "CPU"
    yield _table(
        f"Memory of a rank, GiB ({place}, {load.degrees.describe()}, {load.local_batch_size} x {load.seq_len:,} tokens,"
        f" {load.precision}, {load.operators}, checkpointing {load.checkpointing}, loss {load.loss_kernel})",
        ("", *figures.moments),
        [
            *((text, *(_gib(vars(need)[kind]) for need in figures.moments.values())) for kind, text in _KINDS.items()),
            ("together", *(_gib(need.total) for need in figures.moments.values())),
        ],
    )
    for moment, text in MOMENTS.items():
        yield Text(f"  {moment}: {text}")
    yield Text(f"highest: {_gib(figures.peak_bytes)} GiB, at {figures.peak[0]}{_process(figures)}", style="bold")
    if figures.host_bytes:
        yield Text(f"on the host: {_gib(figures.host_bytes)} GiB (parallelism.cpu_offload)")
    if gpu is not None and figures.limit_bytes is not None:
        fits = (
            f"training.local_batch_size up to {figures.largest_batch} fits"
            if figures.largest_batch
            else "NO batch fits"
        )
        reserve = gpu.memory_gib - figures.limit_bytes / GIB
        yield Text(
            f"{gpu.name}: {fits} its {gpu.memory_gib:g} GiB, {reserve:.1f} of them left to CUDA's context, NCCL and"
            " the allocator's gaps"
        )


def _process(figures: Figures) -> str:
    return "" if figures.run.on_gpu else f", {_gib(PROCESS_BYTES)} of them the process itself"


def _data(figures: Figures) -> Iterator[RenderableType]:
    load, sequences = figures.run.load, figures.run.sequences_per_step
    step_tokens = sequences * load.seq_len
    lines = [
        f"a step: {sequences:,} sequences of {load.seq_len:,}, {format_count(step_tokens)} tokens;"
        f" the run: {figures.steps:,} steps, {format_count(figures.run_tokens)} tokens"
    ]
    epoch = figures.data.sequences(load.seq_len)
    if figures.data.tokens is None or epoch is None:
        lines.append(f"an epoch: {figures.data.origin}")
    else:
        lines.append(
            f"an epoch: {format_count(figures.data.tokens)} tokens ({figures.data.origin}), at least"
            f" {format_count(epoch)} sequences, {epoch / sequences:,.1f} steps;"
            f" the run: {figures.run_tokens / figures.data.tokens:,.2f} epochs"
        )
    yield Text("\n" + "\n".join(lines))


def _scaling(figures: Figures) -> Iterator[RenderableType]:
    assert figures.gpu is not None
    assert figures.alone is not None
    gpu = figures.gpu
    yield Text(
        f"\nOn {gpu.name}, MFU {format_percent(figures.mfu)} where nothing waits; links {gpu.link_gbs:g} GB/s in a node"
        f" of {gpu.per_node}, {gpu.network_gbs:g} GB/s per GPU out of it"
    )
    tokens = figures.run_tokens
    yield _steps("The run as it is configured", [figures.alone], tokens)
    yield _steps("The same local batch on more GPUs, in the best layout", figures.weak, tokens)
    if figures.strong:
        yield _steps("The same global batch on more GPUs, in the best layout", figures.strong, tokens)
    yield Text(_domination(figures))


def _domination(figures: Figures) -> str:
    """From where on a step waits longer for others than it computes."""
    parts = []
    for name, steps in (("local", figures.weak), ("global", figures.strong)):
        if not steps:
            continue
        first = next((step.gpus for step in steps if step.communication_dominates), None)
        where = f"from {first:,} GPUs on" if first else f"not up to {steps[-1].gpus:,} GPUs"
        parts.append(f"at a fixed {name} batch {where}")
    return (
        f"communication takes longer than computation: {'; '.join(parts)}; break-even: with fewer tokens per GPU and"
        " step it would"
    )


def _steps(title: str, steps: Sequence[Step], run_tokens: float) -> Table:
    columns = (
        "GPUs", "layout", "why", "batch", "tokens a step", "GiB", "compute s", "traffic GB", "traffic s", "waits s",
        "break-even", "efficiency", "tokens/s", "hours of the run",
    )  # fmt: skip
    return _table(title, columns, [_step_row(step, run_tokens) for step in steps], left=("layout", "why"))


def _step_row(step: Step, run_tokens: float) -> tuple[str, ...]:
    load = step.load
    times = f" x {load.accumulation}" if load.accumulation > 1 else ""
    return (
        f"{step.gpus:,}",
        step.layout,
        step.reason,
        f"{load.local_batch_size}{times}",
        format_count(step.tokens),
        f"{_gib(step.memory_bytes)}{'' if step.fits else ' (NO)'}",
        f"{step.compute_seconds:.3f}",
        f"{step.communication.bytes / 1e9:.2f}",
        f"{step.communication.seconds:.3f}",
        f"{step.waiting_seconds:.3f}",
        format_count(step.break_even_tokens),
        format_percent(step.efficiency),
        format_count(step.tokens_per_second),
        f"{step.hours(run_tokens):,.1f}",
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ("",)) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def format_flops(count: float) -> str:
    """1.2 G, 34 M."""
    return f"{count / 1e9:.3g} G" if count >= 1e9 else f"{count / 1e6:.3g} M"

"""Where the time of some training steps went, from the Chrome trace that torch.profiler wrote of them."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from molgen_pretrain.metrics.trace_kinds import (
    COMMUNICATION,
    COPIES,
    DATA,
    IDLE,
    kernel_kind,
    operator_kind,
    region_of,
)

STEP_REGION = "step "  # followed by its number: the name of the region that a step is
_HOST = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize", "CtxSynchronize")
# Where no device is profiled: what would wait for one.
_READS = ("aten::_local_scalar_dense", "aten::nonzero")


@dataclass(slots=True, eq=False)
class Span:
    """One event, times in microseconds. `parent` and `children_us` are known after `nest`."""

    name: str
    category: str
    start: float
    end: float
    thread: Any
    link: int | None = None  # shared by an operator and the kernels that it launches
    parent: Span | None = None
    children_us: float = 0.0
    region: str | None = None

    @property
    def us(self) -> float:
        return self.end - self.start

    @property
    def self_us(self) -> float:
        return self.us - self.children_us

    def kind(self) -> str:
        is_region = self.category == "user_annotation"
        is_cast = self.parent is not None and self.parent.name == "aten::_to_copy"
        return operator_kind(self.name, self.region, is_region=is_region, is_cast=is_cast)


@dataclass(frozen=True)
class Operator:
    """All calls of one operator, or of one kernel for one operator."""

    name: str
    kind: str
    calls: int
    us: float


@dataclass(frozen=True)
class Wait:
    """A place where the host waits for the device (or would, in a profile of a CPU)."""

    name: str
    place: str
    calls: int
    us: float


@dataclass(frozen=True)
class Profile:
    """Of whole steps. `kinds` share out `total_us`: on a CPU the main thread's time, else the device's, idle too."""

    steps: list[int]
    total_us: float
    kinds: dict[str, float]
    operators: list[Operator]  # most time first
    waits: list[Wait]
    on_device: bool
    communication_us: float = 0.0  # on a device, behind computation or not


@dataclass
class _Tally:
    """Microseconds and calls by key."""

    us: defaultdict[Any, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[Any] = field(default_factory=Counter)

    def add(self, key: Any, us: float) -> None:
        self.us[key] += us
        self.calls[key] += 1


def read_trace(file: Path) -> list[Span]:
    """The spans of a compressed trace, nested."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        events = json.load(stream)["traceEvents"]
    spans = [
        Span(
            event["name"],
            event["cat"],
            event["ts"],
            event["ts"] + event["dur"],
            event["tid"],
            event.get("args", {}).get("External id"),
        )
        for event in events
        if event.get("ph") == "X" and event.get("cat") in (*_HOST, *_DEVICE)
    ]
    nest([span for span in spans if span.category in _HOST])
    return spans


def nest(spans: Iterable[Span]) -> None:
    """Find the parent of each span of the host: the smallest one around it on its thread."""
    stacks: defaultdict[Any, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        stack = stacks[span.thread]
        while stack and stack[-1].end <= span.start:
            stack.pop()
        if stack:
            span.parent = stack[-1]
            # The clock's resolution may let a child seem to outlast its parent.
            span.end = min(span.end, span.parent.end)
            span.parent.children_us += span.us
        span.region = region_of(span.name, span.parent.region if span.parent else None)
        stack.append(span)


def profile_of(spans: Sequence[Span]) -> Profile:
    """Raises ValueError where the trace holds no step."""
    steps = [s for s in spans if s.category == "user_annotation" and s.name.startswith(STEP_REGION)]
    if not steps:
        raise ValueError("no step in the trace")
    steps.sort(key=lambda span: span.start)
    device = [span for span in spans if span.category in _DEVICE]
    return _of_device(spans, steps, device) if device else _of_host(spans, steps)


def _of_host(spans: Sequence[Span], steps: list[Span]) -> Profile:
    kinds, operators = _Tally(), _Tally()
    inside = [span for span in _during(spans, steps) if span.thread == steps[0].thread]
    for span in inside:
        kind = span.kind()
        kinds.add(kind, span.self_us)
        operators.add((_label(span), kind), span.self_us)
    reads = [span for span in inside if span.name in _READS]
    return Profile(_numbers(steps), sum(s.us for s in steps), dict(kinds.us), _ranked(operators), _waits(reads), False)


def _of_device(spans: Sequence[Span], steps: list[Span], device: list[Span]) -> Profile:
    launchers = {span.link: span for span in spans if span.category == "cpu_op"}
    operators = _Tally()
    busy: list[tuple[Span, str]] = []
    for span in device:
        launcher = launchers.get(span.link) if span.link is not None else None
        kind = kernel_kind(span.name, launcher.kind() if launcher else None)
        busy.append((span, kind))
        operators.add((f"{span.name} ({launcher.name})" if launcher else span.name, kind), span.us)
    # Kernels run later than the step that launches them; whoever profiles lets the device finish in the end.
    start, end = steps[0].start, max([steps[-1].end, *(span.end for span in device)])
    waiting = [(span, DATA) for span in spans if span.category == "user_annotation" and span.region == DATA]
    waits = [s for s in _during(spans, steps) if s.category.startswith("cuda") and s.name.endswith(_WAITS)]
    pageable = [span for span in device if "DtoH" in span.name and "Pinned" not in span.name]
    communication = [(span, kind) for span, kind in busy if kind == COMMUNICATION]
    return Profile(
        _numbers(steps),
        end - start,
        share_out(busy + waiting, start, end),
        _ranked(operators),
        _waits(waits) + _waits(pageable),
        True,
        communication_us=share_out(communication, start, end).get(COMMUNICATION, 0.0),
    )


def share_out(spans: Iterable[tuple[Span, str]], start: float, end: float) -> dict[str, float]:
    """The microseconds from `start` to `end` by kind: each moment counts once, though several streams be busy.

    Computation comes before copies, these before communication (which so counts only where it is not hidden), and
    that before waiting for data. What is left is idle.
    """
    order = {COPIES: 1, COMMUNICATION: 2, DATA: 3, IDLE: 4}
    edges: list[tuple[float, bool, tuple[int, int, str]]] = []
    for number, (span, kind) in enumerate(spans):
        entry = (order.get(kind, 0), number, kind)
        first, last = max(span.start, start), min(span.end, end)
        edges += [(first, True, entry), (last, False, entry)] if first < last else []
    kinds: defaultdict[str, float] = defaultdict(float)
    active: set[tuple[int, int, str]] = set()
    now = start
    for time, begins, entry in sorted(edges, key=lambda edge: edge[0]):
        if time > now:
            kinds[min(active)[2] if active else IDLE] += time - now
            now = time
        (active.add if begins else active.remove)(entry)
    if end > now:
        kinds[IDLE] += end - now
    return dict(kinds)


def _during(spans: Iterable[Span], steps: list[Span]) -> list[Span]:
    """The spans of the host that begin within a step, the steps themselves among them."""
    return [s for s in spans if s.category in _HOST and any(step.start <= s.start < step.end for step in steps)]


def _waits(spans: Iterable[Span]) -> list[Wait]:
    tally = _Tally()
    for span in spans:
        places = []
        parent = span.parent
        while parent is not None and not parent.name.startswith(STEP_REGION):
            places.append(parent.name)
            parent = parent.parent
        # The operator, and the outermost region.
        tally.add((span.name, " in ".join(dict.fromkeys(places[:1] + places[-1:]))), span.us)
    return [Wait(name, place, tally.calls[name, place], us) for (name, place), us in tally.us.items()]


def _label(span: Span) -> str:
    if span.category != "user_annotation":
        return span.name
    # What a region takes besides its operators.
    return f"Python in {STEP_REGION.strip() if span.name.startswith(STEP_REGION) else span.name}"


def _numbers(steps: list[Span]) -> list[int]:
    return [int(step.name.removeprefix(STEP_REGION)) for step in steps]


def _ranked(tally: _Tally) -> list[Operator]:
    found = [Operator(name, kind, tally.calls[name, kind], us) for (name, kind), us in tally.us.items()]
    return sorted(found, key=lambda operator: -operator.us)

"""The report on a profile, as plain text for people."""

from __future__ import annotations

from collections.abc import Sequence

from molgen_pretrain.metrics.trace import Profile, Wait
from molgen_pretrain.metrics.trace_kinds import KINDS

_MOST_OPERATORS = 25
_NAME_WIDTH = 76


def profile_text(profile: Profile, where: str) -> str:
    """Share of each kind, the operators that take most, and where the host waits. `where`: device and rank."""
    return "\n\n".join([_headline(profile, where), _kinds(profile), _operators(profile), _waits(profile)]) + "\n"


def profile_line(profile: Profile) -> str:
    """The largest shares, in a line."""
    kinds = sorted(profile.kinds.items(), key=lambda item: -item[1])
    return ", ".join(f"{us / profile.total_us:.0%} {kind}" for kind, us in kinds[:4])


def _headline(profile: Profile, where: str) -> str:
    first, last, count = min(profile.steps), max(profile.steps), len(profile.steps)
    which = f"step {first}" if first == last else f"steps {first} to {last}"
    what = "the device's time" if profile.on_device else "the main thread's time"
    return f"Profile of {which} on {where}: {profile.total_us / count / 1000:.1f} ms per step. Shares are of {what}."


def _kinds(profile: Profile) -> str:
    count = len(profile.steps)
    rows = [_row(kind, profile.kinds.get(kind, 0.0), profile) for kind in KINDS if kind in profile.kinds]
    lines = [f"{'where the time goes':<28}{'ms/step':>10}{'share':>9}", *rows, _row("total", profile.total_us, profile)]
    if profile.on_device:
        seen = profile.communication_us / count / 1000
        lines.append(f"communication, that behind computation included: {seen:.1f} ms/step")
    return "\n".join(lines)


def _row(kind: str, us: float, profile: Profile) -> str:
    return f"  {kind:<26}{us / len(profile.steps) / 1000:>10.2f}{us / profile.total_us:>9.1%}"


def _operators(profile: Profile) -> str:
    count = len(profile.steps)
    what = "kernel (operator)" if profile.on_device else "operator, without those it calls"
    title = f"{what:<{_NAME_WIDTH}}  {'kind':<24}{'ms/step':>10}{'share':>9}{'calls/step':>12}"
    lines = [
        f"{_shortened(operator.name):<{_NAME_WIDTH}}  {operator.kind:<24}{operator.us / count / 1000:>10.2f}"
        f"{operator.us / profile.total_us:>9.1%}{operator.calls / count:>12g}"
        for operator in profile.operators[:_MOST_OPERATORS]
    ]
    return "\n".join([title, *lines])


def _waits(profile: Profile) -> str:
    if profile.on_device:
        return _listed("The host waits for the device", profile.waits, len(profile.steps))
    return _listed("Values that the host reads, for which it would wait with a GPU", profile.waits, len(profile.steps))


def _listed(what: str, waits: Sequence[Wait], count: int) -> str:
    if not waits:
        return f"{what}: nowhere."
    lines = [
        f"  {wait.name} in {wait.place or 'no operator'}: {wait.calls / count:g} per step,"
        f" {wait.us / count / 1000:.2f} ms"
        for wait in sorted(waits, key=lambda wait: -wait.us)
    ]
    return "\n".join([f"{what}:", *lines])


def _shortened(name: str) -> str:
    """Of a long template instance the beginning, and the operator at the end."""
    if len(name) <= _NAME_WIDTH:
        return name
    operator = name[name.rfind(" (") :] if name.endswith(")") and " (" in name else ""
    return f"{name[: max(_NAME_WIDTH - len(operator) - 3, 20)]}...{operator}"[:_NAME_WIDTH]

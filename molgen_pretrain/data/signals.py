"""Signals and helper processes."""

from __future__ import annotations

import signal

_MAIN_PROCESS_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def leave_signals_to_main_process() -> None:
    """Schedulers and terminals signal every process of a job; only the main one may decide what it means."""
    for name in _MAIN_PROCESS_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

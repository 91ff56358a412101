"""Lines in the log, the bar on a terminal, and the two together."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from molgen_pretrain.metrics.console import ConsoleSink, build_console_handler, format_row
from molgen_pretrain.metrics.formats import format_count, format_duration

ROW = {
    "kind": "train",
    "step": 20,
    "loss": 2.345,
    "lr": 2e-3,
    "phase": "stable",
    "grad_norm": 0.914,
    "tokens_per_second": 12345.0,
    "step_seconds": 0.5,
    "mfu": 0.0123,
    "data_wait_frac": 0.003,
    "memory_gib": 0.61,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Terminal, Console]]:
    """A console on a terminal of 80 columns, with the log of the metrics attached to it."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    console = Console(file=file, width=80, force_terminal=True)
    handler = build_console_handler(console)
    log = logging.getLogger("molgen_pretrain.metrics.console")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield file, console
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.7, "1.00k"), (12_345, "12.3k"), (1_204_000, "1.20M"), (45.6e9, "45.6B")],
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert format_count(value) == text


def test_durations() -> None:
    assert format_duration(131.4) == "0:02:11"
    assert format_duration(3 * 86400 + 4 * 3600) == "3 days, 4:00:00"


def test_train_line_carries_everything() -> None:
    assert format_row(ROW, total_steps=400, eta_seconds=131) == (
        "step  20/400  loss  2.3450  lr 2.00e-03  stable  grad  0.914  12.3k tok/s  mfu  1.2%  "
        "wait  0.3%  mem 0.61 GiB  ETA 0:02:11"
    )


def test_lines_of_different_steps_are_aligned() -> None:
    later = {**ROW, "step": 400, "loss": 11.5, "phase": "decay", "tokens_per_second": 950.0}
    first, second = format_row(ROW, 400), format_row(later, 400)
    assert len(first) == len(second)
    assert first.index("grad") == second.index("grad")


def test_missing_and_broken_values_do_not_break_the_line() -> None:
    assert format_row({"kind": "train", "step": 1, "loss": float("nan"), "mfu": None}, 10) == (
        "step  1/10  loss     nan"
    )


def test_validation_line() -> None:
    row = {"kind": "validation", "step": 5, "loss": 2.345, "perplexity": 10.433, "tokens": 1_200_000}
    assert format_row({**row, "seconds": 3.21}, 10) == (
        "step  5/10  validation loss 2.3450  perplexity 10.433  1.20M tokens  3.2 s"
    )


def test_remaining_time_follows_the_measured_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sink = ConsoleSink(total_steps=120)
    sink.log(ROW)
    sink.log({**ROW, "step": 120})
    assert caplog.messages[0].endswith("ETA 0:00:50")
    assert caplog.messages[1].endswith("ETA 0:00:00")


def test_bar_and_lines_share_a_terminal(terminal: tuple[Terminal, Console]) -> None:
    file, console = terminal
    sink = ConsoleSink(total_steps=100, console=console)
    sink.log(ROW)
    sink.log({**ROW, "step": 40})
    sink.close(0)
    written = file.getvalue()
    assert "20/100" in written
    assert "40/100" in written
    assert "\x1b[2K" in written  # the bar is erased before a line is written above it
    assert "\x1b[?25h" in written  # and the cursor is visible again in the end


@pytest.mark.parametrize("reason", ["pipe", "CI"])
def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "CI":
        monkeypatch.setenv("CI", "true")
    file = io.StringIO() if reason == "pipe" else Terminal()
    sink = ConsoleSink(total_steps=100, console=Console(file=file, force_terminal=reason == "CI"))
    sink.log(ROW)
    sink.close(0)
    assert file.getvalue() == ""


def test_handler_writes_lines_unchanged_whatever_their_width_and_brackets() -> None:
    file = io.StringIO()
    handler = build_console_handler(Console(file=file, width=40))
    message = "[SMILES]CC(=O)O[/SMILES] :smile: /a/long/path" + "/x" * 60
    for level in (logging.INFO, logging.WARNING):
        handler.handle(logging.LogRecord("x", level, "f", 1, message, None, None))
    info, warning = file.getvalue().splitlines()
    assert info[9:] == message
    assert warning[9:] == f"WARNING {message}"

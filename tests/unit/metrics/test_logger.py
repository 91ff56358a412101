"""No sink ends a run, and none fails in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from molgen_pretrain.metrics import JsonlSink, MetricsLogger, Row, Sink, read_rows


class FailingSink(Sink):
    """Fails at one of its three moments, as a library of somebody else's would."""

    name = "failing"

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.rows = 0
        self.exit_codes: list[int] = []

    def open(self) -> None:
        self._maybe_fail("open")

    def log(self, row: Row) -> None:
        self.rows += 1
        self._maybe_fail("log")

    def close(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)
        self._maybe_fail("close")

    def _maybe_fail(self, moment: str) -> None:
        if self.moment == moment:
            raise RuntimeError(f"no luck at {moment}")


@pytest.mark.parametrize("moment", ["open", "log", "close"])
def test_a_failing_sink_is_named_once_and_the_others_get_every_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    failing = FailingSink(moment)
    logger = MetricsLogger([failing, JsonlSink(tmp_path / "metrics.jsonl")])
    for step in (1, 2, 3):
        logger.log({"kind": "train", "step": step, "loss": 1.0})
    logger.close()

    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3
    assert failing.rows == {"open": 0, "log": 1, "close": 3}[moment]
    (warning,) = [record.message for record in caplog.records]
    assert "failing" in warning
    assert f"no luck at {moment}" in warning


def test_exit_code_reaches_the_sinks() -> None:
    sink = FailingSink("never")
    logger = MetricsLogger([sink])
    logger.close(exit_code=3)
    logger.log({"kind": "train", "step": 1})
    assert sink.exit_codes == [3]
    assert sink.rows == 0


def test_an_interrupt_is_not_a_failure_of_a_sink() -> None:
    class Interrupted(FailingSink):
        def log(self, row: Row) -> None:
            raise KeyboardInterrupt

    logger = MetricsLogger([Interrupted("never")])
    with pytest.raises(KeyboardInterrupt):
        logger.log({"kind": "train", "step": 1})

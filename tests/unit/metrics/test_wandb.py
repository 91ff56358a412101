"""wandb really run offline, and every way in which it may fail."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics import MetricsLogger, WandbSink

_VARIABLES = ("MODE", "PROJECT", "ENTITY", "GROUP", "DIR", "RUN_NAME", "API_KEY", "BASE_URL")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _VARIABLES:
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def records(directory: Path) -> list[Any]:
    """Every record of the one offline run below `directory`.

    Its file is a LevelDB log: seven bytes in front, then chunks of CRC (4 bytes), length (2) and type (1: a
    whole record). What these tests write stays within the first block, where no record is split.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    data = path.read_bytes()
    assert len(data) < 32768
    found, offset = [], 7
    while offset < len(data):
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        assert kind == 1
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[offset + 7 : offset + 7 + length])
        found.append(record)
        offset += 7 + length
    return found


def test_offline_run_holds_rows_names_and_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    monkeypatch.setenv("WANDB_RUN_NAME", "named-outside")
    sink = WandbSink(
        "abcd1234",
        mode="offline",
        directory=tmp_path / "run",
        run_name="fallback-name",
        project="fallback-project",
        group="fallback-group",
        config={"training": {"steps": 2}},
        inherited=[{"kind": "train", "step": 10, "loss": 3.0}],
    )
    logger = MetricsLogger([sink])
    assert logger.active == ("wandb",), caplog.text
    logger.log({"kind": "train", "step": 20, "loss": 2.5, "phase": "stable"})
    logger.log({"kind": "validation", "step": 20, "loss": 2.75})
    logger.close(exit_code=1)

    found = records(tmp_path / "run")
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.run_id, run.project, run.display_name, run.run_group) == (
        "abcd1234",
        "from-environment",
        "named-outside",
        "fallback-group",
    )
    assert any(item.key == "training" and item.value_json == '{"steps":2}' for item in run.config.update)
    history = [
        {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    assert (history[0]["step"], history[0]["train/loss"]) == ("10", "3")
    assert (history[1]["step"], history[1]["train/loss"]) == ("20", "2.5")
    assert (history[2]["step"], history[2]["validation/loss"]) == ("20", "2.75")
    metrics = {record.metric.glob_name: record.metric for record in found if record.HasField("metric")}
    assert {"train/*", "validation/*"} <= set(metrics)
    (exit_record,) = [record.exit for record in found if record.HasField("exit")]
    assert exit_record.exit_code == 1
    captured = capfd.readouterr()
    assert "wandb:" not in captured.out + captured.err


def test_wandb_dir_of_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    logger = MetricsLogger([WandbSink("abcd1235", mode="offline", directory=tmp_path / "run")])
    logger.close()
    assert list((tmp_path / "elsewhere").glob("wandb/offline-run-*-abcd1235"))
    assert not (tmp_path / "run").exists()


def test_missing_package_turns_it_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    logger = MetricsLogger([WandbSink("abcd1236", mode="offline", directory=tmp_path)])
    logger.log({"kind": "train", "step": 1, "loss": 1.0})
    logger.close()
    assert "wandb is off for the rest of this run" in caplog.text


def test_online_without_a_key_turns_it_off_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    sink = WandbSink("abcd1237", mode="online", directory=tmp_path, timeout_seconds=2)
    assert MetricsLogger([sink]).active == ()
    assert "wandb is off" in caplog.text


def test_unknown_mode_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.wandb=onlin: .*offline, online or disabled"):
        WandbSink("abcd1238", mode="onlin", directory=tmp_path)

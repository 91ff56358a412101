"""A run of the replaced stack, migrated and started with the command that the tool prints."""

from pathlib import Path

import pytest

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.tools.migrate import main

OLD = """
[model]
flavor = "0.6B"
[molgen_run]
tokenizer_tag = "tokenizers:sample"
run_name = "migrated"
[training]
steps = 4
seq_len = 128
local_batch_size = 2
global_batch_size = 4
dtype = "float32"
dataset_path = "data:train/train_0.jsonl"
[wsds_scheduler]
enable = true
checkpoints = [2, 4]
lr_max = 1e-3
lr_min = 1e-4
[parallelism]
data_parallel_shard_degree = 1
[metrics]
log_freq = 1
"""
PATHS = f"""
base_paths: {{sample: {SAMPLE_DIR}}}
data: {{train: base_paths:sample/train}}
tokenizers: {{sample: base_paths:sample/tokenizer}}
"""
# The old stack's models are too large for this test.
SMALL = [
    f"model.{size}"
    for size in ("hidden_size=32", "num_hidden_layers=2", "head_dim=16", "intermediate_size=64", "vocab_size=384")
]


def test_migrate_and_train(faulty, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(faulty.app.folder)
    Path("old.toml").write_text(OLD)
    Path("paths.yaml").write_text(PATHS)
    arguments = ["old.toml", "--paths", "paths.yaml", "--out", "conf/experiment/mine.yaml"]
    assert main(arguments) == 0
    starter, _, words = capsys.readouterr().out.splitlines()[-1].strip().partition(" -m molgen_pretrain ")
    assert starter == "python"
    _, run = faulty.run(*words.split(), *SMALL, "run_name=migrated")
    assert run.curve("lr") == {1: [1e-3], 2: [1e-4], 3: [1e-3], 4: [1e-4]}
    assert run.rows()[4]["sequences"] == 16

    Path("old.toml").write_text(OLD.replace("steps = 4", "steps = 3"))
    assert main([*arguments, "--force"]) == 1
    assert (
        "error: old.toml:16: wsds_scheduler.checkpoints: scheduler.checkpoints=[2, 4]: [4] beyond"
        in capsys.readouterr().err
    )

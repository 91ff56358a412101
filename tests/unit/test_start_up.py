"""What has to be loaded when: nothing slow before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# In one process, since each costs seconds: which slow packages are there after each of its parts.
_SCRIPT = """
import gc, importlib, json, sys
found = {}

def look(part):
    slow = ("torch", "transformers", "matplotlib", "wandb", "tensorboard", "submitit", "rdkit", "hydra")
    found[part] = [name for name in slow if name in sys.modules]

def exit_code(*arguments):
    sys.argv = ["molgen-pretrain", *arguments]
    try:
        application.main()
    except SystemExit as end:
        return end.code
    return 0

for name in ("jobs", "report", "checkpoint"):
    importlib.import_module(f"molgen_pretrain.tools.{name}")
look("tools without a config")
for name in ("data", "tokenizer", "migrate"):
    importlib.import_module(f"molgen_pretrain.tools.{name}")
look("tools with a config")
application = importlib.import_module("molgen_pretrain.__main__")
found["codes"] = [exit_code("--help"), exit_code("--cfg", "job"), exit_code("training.global_batch_size=13")]
look("help, configs and mistakes")
run = importlib.import_module("molgen_pretrain.job")._load_training()
look("training")
found["collects"] = gc.isenabled()
found["spared"] = gc.get_freeze_count()
print(json.dumps(found))
"""


def test_nothing_slow_is_loaded_before_it_is_needed(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["tools without a config"] == []
    assert found["tools with a config"] == ["hydra"]
    assert found["codes"] == [0, 0, 1]
    assert found["help, configs and mistakes"] == ["hydra"]
    assert found["training"] == ["torch", "transformers", "hydra"]
    # The garbage collector is at work again, and leaves out what the imports have made.
    assert found["collects"]
    assert found["spared"] > 100_000

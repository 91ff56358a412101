"""One rank of a distributed test: `conftest.py` runs this file in a fresh process, with SPEC set."""

from __future__ import annotations

import datetime
import gc
import importlib.util
import json
import os
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    """Join the group, call the function, store its result, leave the group in good order."""
    folder, rank = Path(spec["folder"]), spec["rank"]
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(spec["world_size"]))

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=spec["world_size"],
        timeout=datetime.timedelta(seconds=spec["timeout_seconds"]),
    )
    result = _function(spec)(*spec["arguments"])
    (folder / f"rank-{rank}.json").write_text(json.dumps(result, default=str))
    # Models and meshes die with the function's frame; only then may the group go, or gloo aborts the process.
    gc.collect()
    dist.destroy_process_group()


def _function(spec: dict[str, Any]) -> Any:
    """The test module is loaded by its path, since the tests are no package."""
    module_spec = importlib.util.spec_from_file_location(Path(spec["file"]).stem, spec["file"])
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, spec["function"])


if __name__ == "__rank__":
    main(globals()["SPEC"])

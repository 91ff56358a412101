"""Peak memory of exporting a sharded checkpoint to a Hugging Face folder, for each dtype.

    python benchmarks/hf_export_memory.py [--model qwen3_0_6b] [--ranks 4] [--folder DIR]

Writes a checkpoint of random float32 weights as that many ranks of FSDP2 leave it (no optimizer; 2.4 GB for the 0.6 B
model), runs molgen_pretrain.tools.export on it in a process of its own, and prints a Markdown table: the peak of
resident memory (VmHWM, libraries and mapped file pages included) and its ratio to the model's size in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from molgen_pretrain.checkpoint.commit import Manifest, write_manifest
from molgen_pretrain.checkpoint.files import encode_json, write_bytes
from molgen_pretrain.checkpoint.layout import STATE_FILE, TENSORS_FILE, CheckpointLayout, shard_file
from molgen_pretrain.checkpoint.shards import Box, StoredTensor
from molgen_pretrain.checkpoint.storage import index_to_json, write_tensors
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.model.hf_config import tensor_shapes
from molgen_pretrain.run_directory import RunDirectory

STEP = 1000
# What the process says of itself when the tool is done.
WATCHED = """
import json, sys
from molgen_pretrain.tools.export import main
assert main(sys.argv[1:]) == 0
print(json.dumps(dict(line.split()[:2] for line in open("/proc/self/status") if line.startswith("Vm"))))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="qwen3_0_6b", help="a choice of the config group model")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where it writes; default: the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        cfg = compose_run([f"model={arguments.model}", "data.embedding_rows=384"])
        run = Path(folder) / "run"
        parameters = write_run(run, cfg, arguments.ranks)
        size = parameters * 2
        print(f"{arguments.model}, {parameters:,} parameters, from the files of {arguments.ranks} ranks\n")
        print("| written as | peak memory, MB | of the model in bfloat16 | seconds |")
        print("|---|---:|---:|---:|")
        for dtype in ("bfloat16", "float32"):
            began = time.perf_counter()
            peak = export(run, Path(folder) / dtype, dtype)
            seconds = time.perf_counter() - began
            print(f"| {dtype} | {peak / 1e6:,.0f} | {peak / size:.2f} | {seconds:.0f} |", flush=True)


def export(run: Path, out: Path, dtype: str) -> int:
    """Peak of resident memory in bytes."""
    command = [sys.executable, "-c", WATCHED, str(run), str(out), "--dtype", dtype]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(json.loads(output.splitlines()[-1])["VmHWM:"]) * 1024


def write_run(run: Path, cfg: RunConfig, ranks: int) -> int:
    """A run directory with one checkpoint; returns the number of parameters."""
    sizes = vars(cfg.model)
    shapes = {f"model.{name}": shape for name, shape in tensor_shapes(sizes).items()}
    directory, layout = RunDirectory(run), CheckpointLayout(RunDirectory(run).checkpoints)
    folder = layout.folder(STEP)
    folder.mkdir(parents=True)
    stored = {name: StoredTensor(torch.float32, shape, rows_of_ranks(shape, ranks)) for name, shape in shapes.items()}
    files = {}
    for rank in range(ranks):
        boxes = {name: dict(tensor.parts).get(rank) for name, tensor in stored.items()}
        tensors = {name: torch.randn(box.sizes) for name, box in boxes.items() if box is not None}
        files[shard_file(rank)] = write_tensors(folder / shard_file(rank), tensors).record
    ties = {"model.lm_head.weight": "model.model.embed_tokens.weight"} if sizes["tie_word_embeddings"] else {}
    state = {"progress": {"step": STEP, "tokens": 0}, "schedule": {"schedule": "none"}}
    for name, content in ((TENSORS_FILE, {"tensors": index_to_json(stored), "ties": ties}), (STATE_FILE, state)):
        files[name] = write_bytes(folder / name, [encode_json(content)])
    manifest = Manifest(
        step=STEP, milestone=False, world_size=ranks, torch_version=torch.__version__, files=files, finite=True
    )
    write_manifest(folder, manifest)
    data = {"train_path": "random", "tokenizer": cfg.data.tokenizer}
    training = {"seq_len": cfg.training.seq_len, "steps": STEP}
    content = {"model": sizes, "data": data, "training": training, "init": {"mode": "scratch"}}
    directory.config.write_text(yaml.safe_dump(content))
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def rows_of_ranks(shape: tuple[int, ...], ranks: int) -> tuple[tuple[int, Box], ...]:
    """The rows of each rank as FSDP2 cuts them."""
    piece = -(-shape[0] // ranks)
    starts = enumerate(range(0, shape[0], piece))
    zeros = (0,) * (len(shape) - 1)
    return tuple((rank, Box((start, *zeros), (min(piece, shape[0] - start), *shape[1:]))) for rank, start in starts)


if __name__ == "__main__":
    main()

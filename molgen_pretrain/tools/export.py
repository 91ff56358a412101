"""Writes a checkpoint as a Hugging Face folder, without a GPU and a few hundred MB of memory at a time.

    python -m molgen_pretrain.tools.export RUN|STEP OUT [--dtype bfloat16] [--tokenizer DIR] [--max-shard-size 2GB]

RUN is a run's directory (its newest checkpoint is taken) or its checkpoint folder, STEP one step-* folder. Sizes and
tokenizer are those of the run's config.yaml. Every file of the checkpoint is read once more to compare checksums.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from molgen_pretrain.checkpoint.state import MODEL_PREFIX
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.metrics.formats import format_bytes
from molgen_pretrain.metrics.rows import Row, read_rows
from molgen_pretrain.model.hf_card import model_card
from molgen_pretrain.model.hf_io import write_hf_folder
from molgen_pretrain.model.hf_weights import EXPORT_DTYPES, plan_files
from molgen_pretrain.run_directory import RunDirectory
from molgen_pretrain.tools.checkpoint_list import find_steps
from molgen_pretrain.tools.command_line import run_reporting
from molgen_pretrain.tools.export_source import hf_config_of, read_config, stored_rows, verified_contents


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where a checkpoint is damaged or the user's words lead nowhere."""
    options = parse(arguments)
    console = Console(highlight=False)
    return run_reporting(lambda: run(options, console))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a run's directory, its checkpoint folder or a step-* folder")
    parser.add_argument("out", type=Path, help="the folder to write; it must not exist")
    parser.add_argument("--dtype", choices=EXPORT_DTYPES, default="bfloat16", help="of the weights (default: bfloat16)")
    parser.add_argument("--tokenizer", metavar="DIR", help="default: the run's data.tokenizer")
    parser.add_argument("--max-shard-size", metavar="SIZE", default="2GB", help="of a weight file (default: 2GB)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: config.yaml of the checkpoint's run")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, console: Console) -> int:
    """Verify, compare with the config, write; then say what was written."""
    began = time.perf_counter()
    if options.out.exists():
        raise UserError(f"{options.out}: exists already; give a new name, or remove it")
    step_folder = find_steps(options.checkpoint)[-1].absolute()
    directory = RunDirectory(step_folder.parent.parent)
    config = read_config(options.config or directory.config)
    tokenizer_dir = options.tokenizer or config["data"]["tokenizer"]
    setting = "data.tokenizer" if options.tokenizer is None else "--tokenizer"
    pad_id = UnitTokenizer.load(tokenizer_dir, setting).pad_id
    hf_config = hf_config_of(config["model"], pad_id=pad_id)
    contents = verified_contents(step_folder, hf_config)
    if contents.finite is False:
        console.print(f"{step_folder} was saved with NaN or infinity in its tensors", style="bold red", soft_wrap=True)

    shapes = {
        name.removeprefix(MODEL_PREFIX): stored.shape
        for name, stored in contents.tensors.items()
        if name.startswith(MODEL_PREFIX)
    }
    plan = plan_files(shapes, EXPORT_DTYPES[options.dtype], options.max_shard_size)
    tensors = (stored_rows(step_folder, MODEL_PREFIX + name, contents) for name in plan.order)
    parameters = plan.total_bytes // plan.dtype.itemsize
    card = model_card(
        run_name=directory.name,
        config=config,
        state=contents.state,
        rows=_rows(directory),
        parameters=parameters,
        dtype=options.dtype,
    )
    write_hf_folder(options.out, hf_config, tokenizer_dir, plan, tensors, card=card)
    console.print(
        f"written: {options.out}: {parameters:,} parameters of {step_folder.name} in {options.dtype},"
        f" {format_bytes(plan.total_bytes)} in {len(plan.files)} files, {time.perf_counter() - began:.1f} s",
        markup=False,
        soft_wrap=True,
    )
    return 0


def _rows(directory: RunDirectory) -> list[Row]:
    return read_rows(directory.metrics) if directory.metrics.exists() else []


if __name__ == "__main__":
    sys.exit(main())

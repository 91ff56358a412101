"""Brings a TorchTitan Qwen3 checkpoint here: as a Hugging Face folder, or as a checkpoint that training goes on from.

    python -m molgen_pretrain.tools.import_titan STEP OUT [--config CONFIG] [--tokenizer DIR]
    python -m molgen_pretrain.tools.import_titan STEP OUT --resume [--sequences N] [--tokens N]

STEP is a step-N folder that TorchTitan wrote, by any number of ranks. OUT, which must not exist, becomes a Hugging Face
folder; with --resume a run directory with one checkpoint, for init=resume init.from=OUT or, where it lies among your
runs, run_name=. The format is read without executing anything that it holds. docs/torchtitan.md has the details.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Qwen3Config

from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.model.hf_io import write_hf_folder
from molgen_pretrain.model.hf_weights import plan_files
from molgen_pretrain.titan.checkpoint import TitanCheckpoint
from molgen_pretrain.tools.command_line import run_reporting
from molgen_pretrain.tools.titan_config import find_config
from molgen_pretrain.tools.titan_resume import resumable_state, write_resumable
from molgen_pretrain.tools.titan_text import describe_model, describe_settings
from molgen_pretrain.tools.whole_folder import whole_folder

_MAX_FILE = "2GB"  # of a Hugging Face folder
_MAX_FILE_BYTES = 2 * 10**9  # of a checkpoint of ours


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 for what the user can mend."""
    options = parse(arguments)
    return run_reporting(lambda: run_import(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.import_titan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", type=Path, metavar="STEP", help="a step-N folder of a TorchTitan run")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must not exist")
    parser.add_argument(
        "--config",
        help="a Hugging Face config.json (or its folder), or a choice of the model group (qwen3_0_6b), for what weights"
        " do not tell: rope theta, epsilon, longest context; default: Qwen3's own. All sizes must agree with it",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a tokenizer's folder, copied along")
    parser.add_argument("--resume", action="store_true", help="write a checkpoint with step, tokens and AdamW's state")
    parser.add_argument(
        "--sequences",
        type=int,
        metavar="N",
        help="with --resume: begin after the first N sequences of our data's order",
    )
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="with --resume: tokens trained on; default: what TorchTitan counted"
    )
    options = parser.parse_args(arguments)
    if not options.resume and (options.sequences is not None or options.tokens is not None):
        parser.error("--sequences and --tokens go with --resume")
    if options.resume and options.tokenizer is not None:
        parser.error("--tokenizer goes into a Hugging Face folder; with --resume the run names its own")
    if min(options.sequences or 0, options.tokens or 0) < 0:
        parser.error("--sequences and --tokens count from 0")
    return options


def run_import(options: argparse.Namespace) -> int:
    with whole_folder(options.out) as folder:
        source = TitanCheckpoint(options.step)
        config = find_config(source.sizes, options.config, options.tokenizer)
        print(f"{options.step}: Qwen3, {describe_model(source.weights, source.sizes)}")
        if options.config is None:
            print(f"assumed, for lack of --config: {config.rope_parameters}, epsilon {config.rms_norm_eps:g}")
        notes: list[str] = []
        if options.resume:
            notes = _write_run(folder, source, options)
        else:
            _write_hf(folder, source, config, options.tokenizer)
    print(f"written: {options.out}")
    for note in notes:
        print(note)
    return 0


def _write_hf(folder: Path, source: TitanCheckpoint, config: Qwen3Config, tokenizer: Path | None) -> None:
    """A tensor at a time, in the dtype of all weights; in float32, which holds any, where they are not bfloat16."""
    weights = source.weights
    dtype = torch.bfloat16 if {weight.dtype for weight in weights.values()} == {torch.bfloat16} else torch.float32
    plan = plan_files({name: weight.shape for name, weight in weights.items()}, dtype, _MAX_FILE)
    # TorchTitan's folder has no tokenizer to copy.
    write_hf_folder(folder, config, tokenizer or source.folder, plan, ((weights[name].read(),) for name in plan.order))


def _write_run(folder: Path, source: TitanCheckpoint, options: argparse.Namespace) -> list[str]:
    """What there is to know about the checkpoint that was written."""
    progress, moments, settings = source.progress(), source.moments(), source.settings()
    state = resumable_state(progress, tokens=options.tokens, sequences=options.sequences)
    write_resumable(
        CheckpointLayout(folder / "checkpoint"), source, moments, settings, state, max_bytes=_MAX_FILE_BYTES
    )
    counted = state["progress"]
    unsure = progress.data_ranks is None and options.tokens is None
    return [
        f"step {counted['step']:,}, {counted['tokens']:,} tokens, AdamW's state",
        *["tokens: nothing tells how many data-parallel ranks counted them; taken as one (--tokens sets it)"] * unsure,
        *[f"trained with {line}" for line in describe_settings(settings)],
        f"not carried: {', '.join(source.not_carried()) or 'nothing'}",
        f"DATA: {describe_beginning(options.sequences)}",
        f"go on with: init=resume init.from={options.out} scheduler.on_resume=override",
    ]


def describe_beginning(sequences: int | None) -> str:
    """Where training will begin in the data."""
    if sequences is None:
        return "the place is not carried, the order of sequences starts anew; --sequences N begins later in it"
    return f"begins after the first {sequences:,} sequences of our order, which is not the one that TorchTitan saw"


if __name__ == "__main__":
    sys.exit(main())

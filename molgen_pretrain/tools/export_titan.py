"""Writes a model of ours for TorchTitan 0.3.0: the way back from import_titan.

    python -m molgen_pretrain.tools.export_titan SOURCE OUT [--resume] [--data-ranks N] [--separate-qkv]

SOURCE is a checkpoint of ours (a run's directory stands for its newest) or a Hugging Face folder; OUT, which must not
exist, becomes a distributed checkpoint with the weights. With --resume it holds AdamW's state, step and tokens too, and
TorchTitan goes on from it where it is named step-N in a run's checkpoint folder: docs/torchtitan.md has the details.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from molgen_pretrain.titan.export import export_titan
from molgen_pretrain.tools.command_line import run_reporting
from molgen_pretrain.tools.titan_source import open_source
from molgen_pretrain.tools.titan_text import describe_model, describe_settings
from molgen_pretrain.tools.whole_folder import whole_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 for what the user can mend."""
    options = parse(arguments)
    return run_reporting(lambda: run_export(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.export_titan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a run, a step-* folder or a Hugging Face folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must not exist")
    parser.add_argument("--resume", action="store_true", help="with AdamW's state, step and tokens")
    parser.add_argument(
        "--data-ranks",
        type=int,
        default=1,
        metavar="N",
        help="data-parallel ranks of the TorchTitan run, each of which counts its own tokens; default: 1",
    )
    parser.add_argument(
        "--separate-qkv", action="store_true", help="for a TorchTitan model with fuse_qkv=False (default: True)"
    )
    options = parser.parse_args(arguments)
    if options.data_ranks < 1:
        parser.error("--data-ranks counts from 1")
    return options


def run_export(options: argparse.Namespace) -> int:
    with whole_folder(options.out) as folder:
        source = open_source(options.source)
        print(f"{source.path}: Qwen3, {describe_model(source.weights, source.sizes)}")
        training = source.training_state(options.data_ranks) if options.resume else None
        export_titan(folder, source.weights, source.sizes, training, fused=not options.separate_qkv)
    print(f"written: {options.out}")
    if training is not None:
        print(f"step {training.step:,}, {training.tokens_per_rank:,} tokens per data rank, AdamW's state")
        for line in describe_settings(training.settings):
            print(f"trained with {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

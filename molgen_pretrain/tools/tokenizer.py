"""Makes tokenizers that fit the data, and shows what one makes of them.

    python -m molgen_pretrain.tools.tokenizer inspect TOKENIZER [--data PATH ...]
    python -m molgen_pretrain.tools.tokenizer extend  BASE --tokens TEXT ... --out DIR
    python -m molgen_pretrain.tools.tokenizer compact BASE --data PATH ... --out DIR
    python -m molgen_pretrain.tools.tokenizer expand  MODEL --base BASE --out DIR [--unused masked|snapshot]

TOKENIZER and BASE are Hugging Face tokenizer folders, PATHs files of lines, folders of them or globs. inspect shows
sizes, special tokens and tags, with data also the ids in use and characters per token; extend adds tokens behind the
others; compact keeps the tokens that the data use, in the same segmentation, which it proves on all of them; expand
writes MODEL, the Hugging Face folder of a model with a compact tokenizer, with all rows of BASE's vocabulary.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from molgen_pretrain.config.messages import explain
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.tools.command_line import run_reporting
from molgen_pretrain.tools.tokenizer_pass import DataFiles, measure_usage, prove_same
from molgen_pretrain.tools.tokenizer_report import describe, describe_compaction, describe_usage, section
from molgen_pretrain.vocabulary.compact import compact
from molgen_pretrain.vocabulary.compaction import Compaction, read_compaction, vocabulary_digest
from molgen_pretrain.vocabulary.extend import extend
from molgen_pretrain.vocabulary.folder import new_folder, read_roles, read_tokenizer, write_tokenizer
from molgen_pretrain.vocabulary.rows import DEFAULT_MULTIPLE, padded

_BASE = "base"  # what messages call it


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 for a mistake of the user's or a proof that failed; 130 for Ctrl-C. Nothing is left of either."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)  # passes tell their progress
    console = Console(highlight=False, markup=False, emoji=False)  # tags are not markup
    try:
        return run_reporting(lambda: options.run(options, console), explain)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's function as `run`, with its options."""
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = commands.add_parser("inspect", help="sizes, special tokens, tags; on data: ids in use, lengths")
    command.add_argument("tokenizer", type=Path, help="a tokenizer's folder")
    command.set_defaults(run=run_inspect)
    _add_data(command, required=False)
    command = commands.add_parser("extend", help="add tokens behind the others")
    command.add_argument("base", type=Path, help="a tokenizer's folder")
    command.add_argument("--tokens", nargs="+", required=True, metavar="TEXT", help="in the order of their ids")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new tokenizer's folder")
    command.set_defaults(run=run_extend)
    command = commands.add_parser("compact", help="keep the tokens that data use, in the same segmentation")
    command.add_argument("base", type=Path, help="a tokenizer's folder")
    _add_data(command, required=True)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new tokenizer's folder")
    command.add_argument(
        "--multiple-of",
        type=int,
        default=DEFAULT_MULTIPLE,
        metavar="N",
        help=f"pad the embedding rows to a multiple (default: {DEFAULT_MULTIPLE})",
    )
    command.set_defaults(run=run_compact)
    _add_expand(commands.add_parser("expand", help="write a compact model with the rows of the full vocabulary"))
    return parser.parse_args(arguments)


def run_inspect(options: argparse.Namespace, console: Console) -> int:
    tokenizer = UnitTokenizer.load(options.tokenizer, setting="tokenizer")
    console.print(section(str(options.tokenizer), describe(options.tokenizer, tokenizer)), soft_wrap=True)
    if options.data:
        usage = measure_usage(DataFiles.find(options.data, options.processes), tokenizer)
        raw = read_tokenizer(options.tokenizer, "tokenizer")
        console.print(section(" ".join(options.data), describe_usage(usage, raw)), soft_wrap=True)
    return 0


def run_extend(options: argparse.Namespace, console: Console) -> int:
    tokenizer = read_tokenizer(options.base, _BASE)
    _refuse_compact(options.base)
    ids = extend(tokenizer, options.tokens)
    with new_folder(options.out) as folder:
        write_tokenizer(tokenizer, options.base, folder)
    console.print(f"added: {', '.join(f'{text} {token}' for text, token in ids.items())}", soft_wrap=True)
    console.print(f"written: {options.out}", soft_wrap=True)
    return 0


def run_compact(options: argparse.Namespace, console: Console) -> int:
    if options.multiple_of < 1:
        raise UserError(f"--multiple-of={options.multiple_of}: must be at least 1")
    units = UnitTokenizer.load(options.base, setting=_BASE)
    _refuse_compact(options.base)
    base = read_tokenizer(options.base, _BASE)
    files = DataFiles.find(options.data, options.processes)
    with new_folder(options.out) as folder:
        usage = measure_usage(files, units)
        roles = map(base.token_to_id, read_roles(options.base).values())
        tokenizer, kept_ids = compact(base, {*usage.ids, *(token for token in roles if token is not None)})
        write_tokenizer(tokenizer, options.base, folder)
        # What is proved is what will be read: the files, not the object.
        proved_units, proved_tokens = prove_same(files, base, UnitTokenizer.load(folder, setting="--out"), kept_ids)
        record = Compaction(
            kept_ids=tuple(kept_ids),
            base_size=units.size,
            base_digest=vocabulary_digest(base),
            padded_rows=padded(len(kept_ids), options.multiple_of),
            proved_units=proved_units,
            proved_tokens=proved_tokens,
        )
        record.write(folder)
    console.print(section(f"written: {options.out}", describe_compaction(record, usage, tokenizer)), soft_wrap=True)
    return 0


def run_expand(options: argparse.Namespace, console: Console) -> int:
    from molgen_pretrain.tools import tokenizer_expand  # here: torch and transformers take seconds

    return tokenizer_expand.run_expand(options, console)


def _add_expand(command: argparse.ArgumentParser) -> None:
    command.add_argument("compact", type=Path, metavar="MODEL", help="a Hugging Face folder with a compact tokenizer")
    command.add_argument("--base", required=True, metavar="DIR", help="the tokenizer it was made from, or a snapshot")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the expanded model's folder")
    command.add_argument(
        "--unused",
        choices=("masked", "snapshot"),
        default="masked",
        help="rows of unused tokens: very unlikely, or the snapshot's (default: masked)",
    )
    command.add_argument("--snapshot", metavar="DIR", help="the snapshot, a folder or a hub id (default: --base)")
    command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    command.add_argument("--max-shard-size", metavar="SIZE", default="2GB", help="of a weight file (default: 2GB)")
    command.set_defaults(run=run_expand)


def _add_data(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("--data", nargs="+", required=required, metavar="PATH", help="files, folders or globs")
    command.add_argument("--processes", type=int, metavar="N", help="for the passes over the data (default: all cores)")


def _refuse_compact(folder: Path) -> None:
    if read_compaction(folder) is not None:
        raise UserError(f"{_BASE}={folder}: is compact already; change the tokenizer that it was made from")


if __name__ == "__main__":
    sys.exit(main())

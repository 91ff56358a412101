"""Shows what a run trains on, before it costs anything.

    python -m molgen_pretrain.tools.data stats   [PATH ...] [the same overrides as the run]
    python -m molgen_pretrain.tools.data preview [PATH ...] [the same overrides as the run]
    python -m molgen_pretrain.tools.data build   [PATH ...] [the same overrides as the run]

stats counts lines, units, tokens and what packing makes of them; preview prints packed sequences with their
labels; build makes the one-time pass ahead of a run. A word without = is a path and takes the place of the run's
training data. Short forms: tokenizer=FOLDER, cache=auto|lengths|tokens (data.cache), processes=N
(data.index_processes), seq_len=N, and for stats seq_len=N,N,... and batch=N,N,... (sequences per step).
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from molgen_pretrain.config.messages import explain
from molgen_pretrain.config.schema import world_size_from_env
from molgen_pretrain.errors import UserError
from molgen_pretrain.tools.command_line import run_reporting, write_files
from molgen_pretrain.tools.data_build import build
from molgen_pretrain.tools.data_report import report
from molgen_pretrain.tools.data_stats import DataStats, collect
from molgen_pretrain.tools.data_target import compose_words, find_target
from molgen_pretrain.tools.data_words import Words, read_words

_TABLE_WIDTH = 200  # columns: figures are never folded, a narrow terminal wraps the line


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 for a mistake of the user's, with a message as the run's own; 130 for Ctrl-C."""
    options, rest = parse(arguments)
    console = Console(highlight=False, markup=False, emoji=False)  # names and paths as they are
    console.width = max(console.width, _TABLE_WIDTH)
    try:
        with _log_on_stderr():
            return run_reporting(lambda: options.run(options, read_words(rest), console), explain)
    except KeyboardInterrupt:
        print("interrupted: a pass that was under way starts anew next time", file=sys.stderr)
        return 128 + signal.SIGINT


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, with the command's function as `run`, and the words: paths and overrides."""
    parser = argparse.ArgumentParser(
        prog="python -m molgen_pretrain.tools.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    stats = _add_command(commands, "stats", run_stats, "lines, bad lines, tokens, lengths, packing, steps, caches")
    stats.add_argument("--png", type=Path, metavar="FILE", help="draw the lengths")
    stats.add_argument("--json", type=Path, metavar="FILE", help="every figure, for programs")
    preview = _add_command(commands, "preview", run_preview, "packed sequences, decoded, with their labels")
    preview.add_argument("-n", type=int, default=2, metavar="N", help="how many sequences (default: 2)")
    preview.add_argument("--sequence", type=int, default=0, metavar="K", help="from the K-th on (default: 0)")
    preview.add_argument("--epoch", type=int, default=0, metavar="E", help="of this epoch (default: 0)")
    preview.add_argument("--tokens", action="store_true", help="a line for every position: id, token, label, class")
    for command in (stats, preview):
        command.add_argument("--valid", action="store_true", help="the run's validation data")
    _add_command(commands, "build", run_build, "the one-time pass over training and validation data")
    # Words may stand among the flags, which argparse's own positionals of a subcommand may not.
    options, words = parser.parse_known_args(arguments)
    if flags := [word for word in words if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    return options, words


def run_stats(options: argparse.Namespace, words: Words, console: Console) -> int:
    cfg = compose_words(words, options.world_size, options.config_dir)
    target = find_target(cfg, options.world_size, paths=words.paths, valid=options.valid)
    stats = collect(target, words.seq_lens or (cfg.data.seq_len,), words.batch_sizes or (target.batch_size,))
    for part in report(stats):
        console.print(part, soft_wrap=True)
    write_files(stats, {options.png: write_png, options.json: write_json}, console)
    return 0


def run_preview(options: argparse.Namespace, words: Words, console: Console) -> int:
    words.refuse_for("preview", seq_lens=1)
    cfg = compose_words(words, options.world_size, options.config_dir)
    target = find_target(cfg, options.world_size, paths=words.paths, valid=options.valid)
    numbers = {"-n": (options.n, 1), "--sequence": (options.sequence, 0), "--epoch": (options.epoch, 0)}
    for flag, (value, least) in numbers.items():
        if value < least:
            raise UserError(f"{flag}={value}: must be at least {least}")
    # Batches are torch's: of the three commands only this one loads it.
    from molgen_pretrain.tools.data_preview import read_sequences
    from molgen_pretrain.tools.data_preview_text import preview_text

    for sequence in read_sequences(target, count=options.n, first=options.sequence, epoch=options.epoch):
        for part in preview_text(sequence, target.tokenizer, with_tokens=options.tokens):
            console.print(part, soft_wrap=True)
    return 0


def run_build(options: argparse.Namespace, words: Words, console: Console) -> int:
    words.refuse_for("build", seq_lens=0)
    cfg = compose_words(words, options.world_size, options.config_dir)
    targets = [find_target(cfg, options.world_size, paths=words.paths)]
    if not words.paths and cfg.validation.enable:
        targets.append(find_target(cfg, options.world_size, valid=True))
    for target in targets:
        for part in build(target):
            console.print(part, soft_wrap=True)
    return 0


def write_png(stats: DataStats, path: Path) -> None:
    # matplotlib takes half a second to load.
    from molgen_pretrain.tools.data_picture import draw_stats

    draw_stats(stats, path)


def write_json(stats: DataStats, path: Path) -> None:
    path.write_text(json.dumps(stats.as_json(), indent=2) + "\n", encoding="utf-8")


def _add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace, Words, Console], int],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary,
        usage=f"python -m molgen_pretrain.tools.data {name} [PATH ...] [key=value ...] [flags]",
    )
    command.set_defaults(run=run)
    command.add_argument("--world-size", type=int, default=world_size_from_env(), help="processes of the run")
    command.add_argument("--config-dir", type=Path, metavar="DIR", help="your own choices, as for the run")
    return command


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """The one-time pass tells its progress through the log."""
    logger = logging.getLogger("molgen_pretrain")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())

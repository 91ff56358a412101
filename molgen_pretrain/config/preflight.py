"""What needs the file system: data, tokenizer and checkpoint sources are opened before torch loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from molgen_pretrain.config.choices import InitMode
from molgen_pretrain.config.plain import source_names
from molgen_pretrain.config.schema import DataConfig, RunConfig, SourceConfig
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.mixture import Source
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a run reads, found and opened."""

    train_sources: list[Source]  # one without a name, unless data.sources names some
    valid_files: list[Path]  # empty without validation
    tokenizer: UnitTokenizer


def preflight(cfg: RunConfig) -> Inputs:
    """Find the data, load the tokenizer and hold it against the model.

    Raises UserError with every problem found, one line each.
    """
    problems: list[str] = []

    def attempt(find: Callable[[], T]) -> T | None:
        try:
            return find()
        except UserError as error:
            problems.append(str(error))
            return None

    sources = [attempt(find) for find in source_finders(cfg.data)]
    valid: list[Path] | None = []
    if cfg.validation.enable:
        valid = attempt(lambda: resolve_files(cfg.data.valid_path, setting="data.valid_path"))
    tokenizer = attempt(lambda: UnitTokenizer.load(cfg.data.tokenizer, setting="data.tokenizer"))
    if tokenizer is not None and tokenizer.size > cfg.model.vocab_size:
        problems.append(
            f"model.vocab_size={cfg.model.vocab_size}: the embedding has fewer rows than the tokenizer "
            f"{cfg.data.tokenizer} has tokens ({tokenizer.size}); give model.vocab_size >= {tokenizer.size} "
            "or data.embedding_rows where the model takes it from there"
        )
    if cfg.init.mode is InitMode.resume and not Path(cfg.init.source).expanduser().is_dir():
        problems.append(f"init.from={cfg.init.source}: no such folder; give a run directory or a step directory")
    if problems or valid is None or tokenizer is None:
        raise UserError("\n".join(problems))
    return Inputs([source for source in sources if source is not None], valid, tokenizer)


def source_finders(data: DataConfig) -> Iterator[Callable[[], Source]]:
    """One function per source of training data, which finds its files or raises UserError."""
    if not data.sources:
        yield lambda: Source("", resolve_files(data.train_path, setting="data.train_path"), 1.0)
    for number, (source, name) in enumerate(zip(data.sources, source_names(data), strict=True)):
        yield partial(_find_source, source, name, f"data.sources[{number}].path")


def _find_source(source: SourceConfig, name: str, setting: str) -> Source:
    return Source(name, resolve_files(source.path, setting=setting), source.weight)

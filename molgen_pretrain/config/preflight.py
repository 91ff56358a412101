"""What needs the file system: data, tokenizer and checkpoint sources are opened before torch loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from molgen_pretrain.checkpoint.layout import CheckpointLayout
from molgen_pretrain.config.hf_start import HfStart, check_sizes, match_vocabulary, open_snapshot
from molgen_pretrain.config.plain import resume_source, runs_dir, source_names
from molgen_pretrain.config.schema import DataConfig, HfPretrainInit, ResumeInit, RunConfig, SourceConfig
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.mixture import Source
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.run_directory import RunDirectory

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a run reads, found and opened."""

    train_sources: list[Source]  # one without a name, unless data.sources names some
    valid_files: list[Path]  # empty without validation
    tokenizer: UnitTokenizer
    hf_start: HfStart | None = None  # of init=hf_pretrain, unless the run goes on from a checkpoint of its own


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
    hf_start: HfStart | None = None
    init = None if _goes_on(cfg) else cfg.init
    if isinstance(init, ResumeInit) and not resume_source(init).is_dir():
        problems.append(f"init.from={init.source}: no such folder; give a run directory or a step directory")
    if isinstance(init, HfPretrainInit) and (snapshot := attempt(lambda: open_snapshot(init))) is not None:
        attempt(lambda: check_sizes(cfg.model, snapshot))
        if tokenizer is not None:
            hf_start = attempt(lambda: match_vocabulary(init, snapshot, cfg.data.tokenizer))
    if problems or valid is None or tokenizer is None:
        raise UserError("\n".join(problems))
    return Inputs([source for source in sources if source is not None], valid, tokenizer, hf_start)


def source_finders(data: DataConfig) -> Iterator[Callable[[], Source]]:
    """One function per source of training data, which finds its files or raises UserError."""
    if not data.sources:
        yield lambda: Source("", resolve_files(data.train_path, setting="data.train_path"), 1.0)
    for number, (source, name) in enumerate(zip(data.sources, source_names(data), strict=True)):
        yield partial(_find_source, source, name, f"data.sources[{number}].path")


def _goes_on(cfg: RunConfig) -> bool:
    """Whether the run has checkpoints of its own, from which it continues whatever init says."""
    if cfg.run_name is None:
        return False
    directory = RunDirectory(runs_dir(cfg.paths) / cfg.run_name)
    return bool(CheckpointLayout(directory.checkpoints).committed_steps())


def _find_source(source: SourceConfig, name: str, setting: str) -> Source:
    return Source(name, resolve_files(source.path, setting=setting), source.weight)

"""What needs the file system: data, tokenizer and checkpoint sources are opened before torch loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from molgen_pretrain.config.choices import InitMode
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """What a run reads, found and opened."""

    train_files: list[Path]
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

    train = attempt(lambda: resolve_files(cfg.data.train_path, setting="data.train_path"))
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
    if problems or train is None or valid is None or tokenizer is None:
        raise UserError("\n".join(problems))
    return Inputs(train, valid, tokenizer)

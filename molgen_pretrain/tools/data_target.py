"""The data that the tool looks at: that of a run, as the run would read it, or paths given in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.config.batch import accumulation_steps
from molgen_pretrain.config.choices import OnBadLine, Overflow
from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.plain import cache_budget_bytes, cache_dir, data_seed, source_names
from molgen_pretrain.config.preflight import source_finders
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.config.validate import parallel_degrees, validate
from molgen_pretrain.data.corpus import Corpus, open_corpus
from molgen_pretrain.data.files import resolve_files
from molgen_pretrain.data.mixture import Source
from molgen_pretrain.data.plan import OrderSettings
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.tools.data_words import Words


@dataclass(frozen=True, kw_only=True)
class DataTarget:
    """Training data, validation data or given paths, with the settings of the run that decide their order.

    `batch_size` is a global batch in sequences, `steps` how many of them the run trains on (None: it does not
    train on these data).
    """

    cfg: RunConfig
    title: str
    setting: str
    sources: tuple[Source, ...]
    tokenizer: UnitTokenizer
    shuffle_lines: bool
    batch_size: int
    steps: int | None

    def open(self, seq_len: int) -> Corpus:
        """The sources in sequences of `seq_len` tokens, as the run plans them.

        Makes the one-time pass where it is still due, in the run's own mode, so that the run finds it done.
        """
        data = self.cfg.data
        drops = data.overflow is Overflow.drop
        return open_corpus(
            self.sources,
            OrderSettings(data_seed(self.cfg), seq_len, self.shuffle_lines, data.lookahead_limit, drops),
            self.tokenizer,
            self.cache_dir,
            min_emb_len=data.min_emb_len,
            stop_at_bad_line=data.on_bad_line is OnBadLine.error,
            token_cache=data.cache.value,
            budget_bytes=self.budget_bytes,
            processes=data.index_processes,
            setting=self.setting,
        )

    @property
    def cache_dir(self) -> Path:
        return cache_dir(self.cfg.data)

    @property
    def budget_bytes(self) -> int:
        return cache_budget_bytes(self.cfg.data)


def compose_words(words: Words, world_size: int, config_dir: Path | None) -> RunConfig:
    """The run's config with the words' own settings on top, checked as the run would check it."""
    cfg = compose_run(words.overrides, config_dir)
    if words.tokenizer is not None:
        cfg.data.tokenizer = words.tokenizer
    if words.seq_lens:
        cfg.data.seq_len = words.seq_lens[0]
    validate(cfg, world_size)
    return cfg


def find_target(cfg: RunConfig, world_size: int, *, paths: tuple[str, ...] = (), valid: bool = False) -> DataTarget:
    """`paths`, or else the run's validation or training data; the tokenizer is loaded. UserError for mistakes."""
    local, degree = cfg.training.local_batch_size, parallel_degrees(cfg, world_size).data_parallel
    micro_batches = accumulation_steps(local, cfg.training.global_batch_size, degree)
    steps: int | None = None
    sources: tuple[Source, ...]
    if paths and valid:
        raise UserError("--valid: the paths that are given take the place of the run's data; leave one of them out")
    if paths:
        setting, title = "path", _title(list(paths))
        sources = (Source("paths", resolve_files(paths, setting), 1.0),)
    elif valid:
        if not cfg.data.valid_path:
            raise UserError("data.valid_path=null: this run has no validation data; give data.valid_path")
        setting, title = "data.valid_path", f"validation data: {_title(cfg.data.valid_path)}"
        sources = (Source("valid", resolve_files(cfg.data.valid_path, setting), 1.0),)
        local, micro_batches = cfg.validation.local_batch_size, 1
    else:
        setting, title, steps = "data.train_path", f"training data: {_train_title(cfg)}", cfg.training.steps
        sources = tuple(find() for find in source_finders(cfg.data))
    return DataTarget(
        cfg=cfg,
        title=title,
        setting=setting,
        sources=sources,
        tokenizer=UnitTokenizer.load(cfg.data.tokenizer, setting="data.tokenizer"),
        shuffle_lines=cfg.data.shuffle_lines and not valid,
        batch_size=local * degree * micro_batches,
        steps=steps,
    )


def _train_title(cfg: RunConfig) -> str:
    names = source_names(cfg.data)
    return f"a mixture of {', '.join(names)}" if names else _title(cfg.data.train_path)


def shown(path: str) -> str:
    """A path, or `file:line`, as short as it can be typed here."""
    for folder, short in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.startswith(f"{folder}/"):
            return short + path.removeprefix(f"{folder}/")
    return path


def _title(path: str | list[str]) -> str:
    return " ".join(map(shown, [path] if isinstance(path, str) else path))

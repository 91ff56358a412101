"""What the plan tool knows of the data: from the cache, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from molgen_pretrain.config.plain import cache_dir
from molgen_pretrain.config.preflight import source_finders
from molgen_pretrain.config.schema import RunConfig
from molgen_pretrain.data.known_index import known_totals
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.flops import causal_pairs


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Tokens of an epoch (separators included, None where nobody knows), where that is from, and the attention pairs
    per token."""

    tokens: float | None
    origin: str
    pairs_per_token: float

    def sequences(self, seq_len: int) -> float | None:
        """As many as full ones would be: packing may need some more, `tools.data stats` counts them."""
        return None if self.tokens is None else self.tokens / seq_len


def plan_data(cfg: RunConfig, tokens_per_epoch: float | None) -> DataPlan:
    """`tokens_per_epoch` if given, else the totals of the one-time pass where it has been made."""
    seq_len = cfg.training.seq_len
    whole_rows = causal_pairs(seq_len) / seq_len
    if tokens_per_epoch is not None:
        return DataPlan(tokens=tokens_per_epoch, origin="--tokens-per-epoch", pairs_per_token=whole_rows)
    lengths = _units_of_length(cfg)
    if not lengths:
        origin = "unknown: no pass has been made over these data; give --tokens-per-epoch, or run tools.data build"
        return DataPlan(tokens=None, origin=origin, pairs_per_token=whole_rows)
    tokens, pairs = totals(lengths, seq_len)
    pairs_per_token = pairs / tokens if cfg.data.document_mask else whole_rows
    return DataPlan(tokens=tokens, origin="the data's cache", pairs_per_token=pairs_per_token)


def totals(units_of_length: Mapping[int, int], seq_len: int) -> tuple[float, float]:
    """(tokens, attention pairs within units) of units by their token count, truncated to a sequence, each followed by
    its separator."""
    lengths = {min(length, seq_len - 1) + 1: 0 for length in units_of_length}
    for length, units in units_of_length.items():
        lengths[min(length, seq_len - 1) + 1] += units
    tokens = sum(length * units for length, units in lengths.items())
    return float(tokens), sum(causal_pairs(length) * units for length, units in lengths.items())


def _units_of_length(cfg: RunConfig) -> dict[int, int]:
    """Over all sources; empty where the files or their pass are not there."""
    merged: dict[int, int] = {}
    try:
        tokenizer = UnitTokenizer.load(cfg.data.tokenizer, setting="data.tokenizer")
        files: Sequence = [find().files for find in source_finders(cfg.data)]
    except UserError:
        return {}  # the plan is for another machine than this one
    for source in files:
        meta = known_totals(source, tokenizer, cache_dir(cfg.data), min_emb_len=cfg.data.min_emb_len)
        if meta is None:
            return {}
        for length, units in meta.units_of_length.items():
            merged[length] = merged.get(length, 0) + units
    return merged

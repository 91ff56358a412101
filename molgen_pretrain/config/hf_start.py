"""init=hf_pretrain before torch loads: does the snapshot fit the model, and which of its rows are which token's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from molgen_pretrain.config.schema import HfPretrainInit, ModelConfig
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import size_problems
from molgen_pretrain.model.hf_snapshot import Snapshot, resolve
from molgen_pretrain.vocabulary.compaction import read_compaction, token_text_map
from molgen_pretrain.vocabulary.folder import read_tokenizer

_SHOWN = 3


@dataclass(frozen=True)
class HfStart:
    """A snapshot, and how its tokens relate to the run's.

    `old_ids` has the snapshot's id of each of the run's `tokens`, or None for one that it does not know. Without it
    the ids are the same, and the run's from `base_tokens` on, the number of the snapshot's, are added ones.
    """

    snapshot: Snapshot
    base_tokens: int
    tokens: int
    old_ids: Sequence[int | None] | None


def open_snapshot(init: HfPretrainInit) -> Snapshot:
    """The snapshot of `init.from`, downloaded where need be. Raises UserError.

    Ranks that ask for the same file of the hub at once are no harm: its client lets one of a machine download it
    while the others wait.
    """
    return Snapshot.open(resolve(init.source))


def check_sizes(model: ModelConfig, snapshot: Snapshot) -> None:
    """Raises UserError with every size that differs, and all of them as overrides to paste."""
    ours = model.sizes()
    if problems := size_problems(ours, snapshot.sizes):
        theirs = {name: value for name, value in snapshot.sizes.items() if name != "vocab_size" and ours[name] != value}
        overrides = " ".join(f"model.{name}={value}" for name, value in theirs.items())
        problems.append(f"init.from={snapshot.folder}: all of its sizes are had with {overrides}")
        raise UserError("\n".join(problems))


def match_vocabulary(init: HfPretrainInit, snapshot: Snapshot, tokenizer: str) -> HfStart:
    """How the run's `tokenizer` relates to the snapshot's.

    Raises UserError where an id that both have means another text in each, unless the run's tokenizer is a compact
    one: then rows are found by text.
    """
    base, setting = _base_tokenizer(init, snapshot)
    old = read_tokenizer(base, setting).get_vocab(with_added_tokens=True)
    new = read_tokenizer(tokenizer, "data.tokenizer").get_vocab(with_added_tokens=True)
    texts = {token: text for text, token in old.items()}
    moved = sorted((token, text) for text, token in new.items() if texts.get(token, text) != text)
    if moved and read_compaction(tokenizer) is None:
        shown = ", ".join(f"{token} is {text!r} instead of {texts[token]!r}" for token, text in moved[:_SHOWN])
        raise UserError(
            f"data.tokenizer={tokenizer}: {len(moved)} of its ids mean other texts than in {base}, the tokenizer of the"
            f" snapshot: {shown}; give that one, or one made of it (tools.tokenizer extend, compact)"
        )
    return HfStart(
        snapshot,
        base_tokens=max(texts) + 1,
        tokens=max(new.values()) + 1,
        old_ids=token_text_map(base, tokenizer, base_setting=setting) if moved else None,
    )


def _base_tokenizer(init: HfPretrainInit, snapshot: Snapshot) -> tuple[Path, str]:
    """The folder of the snapshot's tokenizer, and the setting that names it."""
    if init.tokenizer is not None:
        return Path(init.tokenizer).expanduser(), "init.tokenizer"
    if not (snapshot.folder / "tokenizer.json").is_file():
        raise UserError(
            f"init.from={init.source}: has no tokenizer.json, so nothing says which token each row of the embedding is"
            " for; give init.tokenizer=DIR, the tokenizer that its weights were trained with"
        )
    return snapshot.folder, "init.from"

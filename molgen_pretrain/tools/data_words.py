"""The words of a command line that are no flags: paths, overrides of the run, and short forms of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from molgen_pretrain.errors import UserError

_SHORT_FORMS = {"cache": "data.cache", "processes": "data.index_processes"}
_NUMBERS = {"seq_len": 2, "batch": 1}  # the least that makes sense


@dataclass(frozen=True)
class Words:
    """`tokenizer` and `paths` are taken as they are, while Hydra's grammar would want odd characters quoted."""

    paths: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    tokenizer: str | None = None
    seq_lens: tuple[int, ...] = ()
    batch_sizes: tuple[int, ...] = ()

    def refuse_for(self, command: str, *, seq_lens: int) -> None:
        """UserError for a batch, or more than `seq_lens` sequence lengths: `command` has no use for them."""
        if self.batch_sizes:
            raise UserError(f"batch={_list(self.batch_sizes)}: {command} has no use for it; leave it out")
        if len(self.seq_lens) > seq_lens:
            fix = "give one" if seq_lens else "leave it out"
            raise UserError(f"seq_len={_list(self.seq_lens)}: {command} has no use for it; {fix}")


def read_words(words: Sequence[str]) -> Words:
    """A word with `=` is an override or a short form, unless it begins like a path; any other is a path.

    Raises UserError for numbers that are none, or too small.
    """
    paths, overrides, numbers, tokenizer = [], [], {}, None
    for word in words:
        key, is_setting, value = word.partition("=")
        if not is_setting or word.startswith(("/", ".")):
            paths.append(word)
        elif key in _NUMBERS:
            numbers[key] = _numbers(key, value)
        elif key == "tokenizer":
            tokenizer = value
        else:
            overrides.append(f"{_SHORT_FORMS.get(key, key)}={value}")
    return Words(tuple(paths), tuple(overrides), tokenizer, numbers.get("seq_len", ()), numbers.get("batch", ()))


def _numbers(key: str, value: str) -> tuple[int, ...]:
    """One number, or several between commas, with brackets or without."""
    try:
        numbers = tuple(int(part) for part in value.strip("[] ").split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < _NUMBERS[key]:
        raise UserError(f"{key}={value}: must be integers from {_NUMBERS[key]} up, e.g. {key}=2048 or {key}=2048,4096")
    return numbers


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))

"""The config of an imported model: sizes from its weights, the rest from where the user points."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from transformers import Qwen3Config

from molgen_pretrain.config.compose import compose_run
from molgen_pretrain.config.store import conf_dir
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import CONFIG_FILE, read_sizes
from molgen_pretrain.model.qwen3 import Qwen3Arch
from molgen_pretrain.titan.sizes import Qwen3Sizes


def find_config(sizes: Qwen3Sizes, given: str | None, tokenizer: Path | None) -> Qwen3Config:
    """The Hugging Face config of a model of these sizes.

    Args:
        given: a config.json, a folder with one, a choice of the model group, or None for Qwen3's usual values.
        tokenizer: whose pad token ends and fills sequences; None leaves open which token does.

    Raises:
        UserError: there is no such config or tokenizer, or it contradicts the sizes; it names the fields.
    """
    weights = asdict(sizes)
    arch = Qwen3Arch(**weights) if given is None else _given_arch(given)
    told = asdict(arch)
    wrong = [f"{name}={told[name]}, the weights say {value}" for name, value in weights.items() if told[name] != value]
    if wrong:
        raise UserError(f"--config={given}: contradicts the checkpoint: {'; '.join(wrong)}")
    config = arch.hf_config(eos_token_id=0, pad_token_id=0)
    config.eos_token_id = config.pad_token_id = None if tokenizer is None else _pad_id(tokenizer, sizes.vocab_size)
    return config


def _pad_id(tokenizer: Path, rows: int) -> int:
    units = UnitTokenizer.load(tokenizer, "--tokenizer")
    if units.size > rows:
        raise UserError(
            f"--tokenizer={tokenizer}: {units.size:,} tokens, the embedding has {rows:,} rows; "
            "give the tokenizer that the model was trained with"
        )
    return units.pad_id


def _given_arch(given: str) -> Qwen3Arch:
    path = Path(given).expanduser()
    folder = path.parent if path.name == CONFIG_FILE else path
    if folder.is_dir():
        return Qwen3Arch(**read_sizes(folder, "--config"))
    choices = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml"))
    if given not in choices:
        raise UserError(f"--config={given}: no {CONFIG_FILE}, no folder with one, and none of {', '.join(choices)}")
    return Qwen3Arch(**compose_run([f"model={given}"]).model.sizes())

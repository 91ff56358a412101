"""From the old file's keys to the settings and choices of a run."""

from __future__ import annotations

from collections.abc import Iterable

from molgen_pretrain.migration.aliases import Aliases
from molgen_pretrain.migration.keys import KEYS
from molgen_pretrain.migration.ledger import Ledger
from molgen_pretrain.migration.schedule import translate_schedule
from molgen_pretrain.migration.start import translate_start
from molgen_pretrain.migration.toml_file import OldFile

_EXPORTS = ("checkpoint.last_save_in_hf", "checkpoint.save_hf_per_checkpoint")


def translate(old: OldFile, aliases: Aliases) -> Ledger:
    """What became of every key. Mistakes are in the ledger's `problems`, not raised."""
    ledger = Ledger(old, aliases)
    translate_start(ledger)
    ledger.choices["training"] = "pretrain"
    _job(ledger)
    translate_schedule(ledger)
    for name, key in KEYS.items():
        if key.new:
            ledger.carry(name, key.new, ledger.value(name))
        elif key.obsolete:
            ledger.drop(key.obsolete, name)
    _parallelism(ledger)
    _saving(ledger)
    _remarks(ledger)
    ledger.drop("it is empty", *(key for key in ledger.unsettled() if ledger.value(key) == ""))
    assert ledger.problems or not ledger.unsettled(), f"nothing has become of {ledger.unsettled()}"
    return ledger


def _job(ledger: Ledger) -> None:
    """Names, which the environment may give instead, as it could before."""
    for key, new, variables in (
        ("job.description", "description", ("RUN_DESC", "JOB_DESCRIPTION")),
        ("molgen_run.run_name", "run_name", ("RUN_NAME", "WANDB_RUN_NAME")),
    ):
        if ledger.value(key):
            ledger.carry(key, new, _from_environment(variables, ledger.value(key)))


def _from_environment(variables: Iterable[str], text: str) -> str:
    """An interpolation: the first of the variables that is set, else the text."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    value = f"'{escaped}'"
    for variable in reversed(list(variables)):
        value = f"${{oc.env:{variable},{value}}}"
    return value


def _parallelism(ledger: Ledger) -> None:
    """The choice that the degrees come nearest to; they are given besides."""
    replicate, shard, tensor = (
        ledger.value(f"parallelism.{name}_degree")
        for name in ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
    )
    if tensor != 1:
        choice = "fsdp_tp"
    elif shard == 1:
        choice = "single" if replicate == 1 else "ddp"
    else:
        choice = "fsdp" if replicate == 1 else "hsdp"
    ledger.choices["parallelism"] = choice


def _saving(ledger: Ledger) -> None:
    last, every = map(ledger.value, _EXPORTS)
    if last is not None or every is not None:
        export = "every" if every else "last" if last else "never"
        for key in filter(ledger.has, _EXPORTS):
            ledger.carry(key, "checkpoint.hf_export", export)
    if ledger.has("metrics.enable_wandb"):
        mode = "online" if ledger.value("metrics.enable_wandb") else "disabled"
        ledger.carry("metrics.enable_wandb", "metrics.wandb", mode)


def _remarks(ledger: Ledger) -> None:
    """What is carried as it was, and better looked at."""
    dtype, lookahead = ledger.value("training.dtype"), ledger.value("molgen_data.lookahead_limit")
    if dtype == "float32":
        ledger.note(
            "training.dtype=float32 computes in float32. The old trainer computed in bfloat16 all the same, unless "
            "training.mixed_precision_param said otherwise: training.dtype=bfloat16 is that, with float32 weights"
        )
    if lookahead is not None and lookahead < 1000:
        ledger.note(
            f"data.lookahead_limit={lookahead} is carried. Without it (65536) sequences of 2,048 are filled to 99.99 % "
            "instead of 97 %, at no cost: remove it, unless the order of the data is to be packed as before"
        )

"""The learning rate: optimizer, wsds_scheduler and lr_scheduler decide on it together."""

from __future__ import annotations

from molgen_pretrain.migration.ledger import Ledger

_DEFAULT_LR = 8e-4  # the old optimizer's own
_WSDS_KEYS = ("warmup_steps", "checkpoints", "lr_max", "lr_min", "decay_frac", "decay_steps", "base_lr")
_LR_SCHEDULER_KEYS = ("lr_scheduler.warmup_steps", "lr_scheduler.decay_type")


def translate_schedule(ledger: Ledger) -> None:
    """Choose optimizer and scheduler, and give them the old file's values."""
    ledger.choose("optimizer", ledger.value("optimizer.name"), "optimizer.name")
    betas = [ledger.value("optimizer.beta1"), ledger.value("optimizer.beta2")]
    ledger.carry("optimizer.beta1", "optimizer.betas", betas)
    ledger.carry("optimizer.beta2", "optimizer.betas", betas)
    if ledger.value("wsds_scheduler.enable"):
        _wsds(ledger)
    else:
        _lr_scheduler(ledger)


def _wsds(ledger: Ledger) -> None:
    ledger.choose("scheduler", "wsds", "wsds_scheduler.enable")
    _rates_of_wsds(ledger)
    for name in ("warmup_steps", "lr_min", "decay_frac", "decay_steps"):
        ledger.carry(f"wsds_scheduler.{name}", f"scheduler.{name}", ledger.value(f"wsds_scheduler.{name}"))
    if ledger.value("wsds_scheduler.checkpoints"):
        ledger.carry("wsds_scheduler.checkpoints", "scheduler.checkpoints", ledger.value("wsds_scheduler.checkpoints"))
    else:
        ledger.carry("wsds_scheduler.checkpoints", "scheduler.checkpoints_frac", [1.0])
        ledger.note("wsds_scheduler.checkpoints names no step: there is one decay, which ends with the run")
    ledger.drop("not read with wsds_scheduler.enable=true", *_LR_SCHEDULER_KEYS)


def _rates_of_wsds(ledger: Ledger) -> None:
    """The peak, whose home is optimizer.lr; scheduler.lr_max is an interpolation of that."""
    lr_max, base_lr = ledger.value("wsds_scheduler.lr_max"), ledger.value("wsds_scheduler.base_lr")
    rates = {"optimizer.lr": ledger.value("optimizer.lr")}
    rates |= {"wsds_scheduler.lr_max": lr_max, "wsds_scheduler.base_lr": base_lr}
    source = next((key for key, rate in rates.items() if rate is not None), "optimizer.lr")
    lr = _DEFAULT_LR if rates[source] is None else rates[source]
    ledger.carry(source, "optimizer.lr", lr)
    if source == "optimizer.lr" and lr_max == lr:
        ledger.carry("wsds_scheduler.lr_max", "optimizer.lr", lr)
    elif source == "optimizer.lr" and lr_max is not None:
        ledger.carry("wsds_scheduler.lr_max", "scheduler.lr_max", lr_max)
        ledger.note(
            f"optimizer.lr={lr} and wsds_scheduler.lr_max={lr_max} differ: here the schedule's is the peak. Some "
            "versions of the old stack took the optimizer's: for that, remove scheduler.lr_max from the new file"
        )
    if base_lr is not None and base_lr <= 0:
        ledger.fail("wsds_scheduler.base_lr", "must be positive")
    elif base_lr not in (None, lr):
        ledger.note(
            f"wsds_scheduler.base_lr={base_lr} is not the optimizer's rate, {lr}: the old trainer multiplied all rates "
            f"of the schedule by {lr / base_lr:g}; here they are what the schedule says"
        )
    ledger.drop(
        "it divided rates that the old trainer multiplied again; here they are as given", "wsds_scheduler.base_lr"
    )


def _lr_scheduler(ledger: Ledger) -> None:
    """TorchTitan's own: warmup, then a decay to 0 over all that is left of the run."""
    choice = ledger.value("lr_scheduler.decay_type")
    ledger.choose("scheduler", choice, "lr_scheduler.decay_type", "wsds_scheduler.enable")
    warmup, lr = ledger.value("lr_scheduler.warmup_steps"), ledger.value("optimizer.lr")
    ledger.carry("lr_scheduler.warmup_steps", "scheduler.warmup_steps", warmup)
    ledger.carry("optimizer.lr", "optimizer.lr", _DEFAULT_LR if lr is None else lr)
    if choice in ("linear", "cosine"):
        ledger.settings["scheduler.min_lr"] = 0.0
    if choice == "wsd":
        ledger.settings["scheduler.decay_shape"] = "one_minus_sqrt"
        ledger.settings["scheduler.lr_min"] = 0.0
        ledger.settings["scheduler.decay_steps"] = max(1, ledger.value("training.steps") - warmup)
    unread = [f"wsds_scheduler.{name}" for name in _WSDS_KEYS if ledger.has(f"wsds_scheduler.{name}")]
    if unread:
        ledger.note("wsds_scheduler.enable is not true: its keys are left out, and lr_scheduler decides, as before")
    ledger.drop("not read without wsds_scheduler.enable=true", *unread)

"""Doing things together: a failure on one rank becomes the same failure on every rank, never a hang."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from molgen_pretrain.errors import UserError

T = TypeVar("T")


class RankFailure(RuntimeError):
    """An action failed on at least one rank; raised on all of them with the same message."""

    def __init__(self, failures: list[str], *, storage: bool) -> None:
        self.storage = storage
        """Every cause was an OSError, so trying again later may work."""
        super().__init__("; ".join(failures))


@dataclass(frozen=True)
class _Outcome:
    """What one rank tells the others: plain data, since not every exception survives the journey."""

    value: Any = None
    failure: str | None = None
    storage: bool = False
    user: bool = False


class Ranks:
    """The processes of a group, or the single process where there is none.

    The group must span all ranks that hold shards; a gloo group keeps these small messages off the device.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(group) if self._distributed else 0
        self.world_size = dist.get_world_size(group) if self._distributed else 1

    @classmethod
    def apart(cls, timeout_seconds: float) -> Ranks:
        """All ranks once more, in a gloo group of their own, for use in another thread. Collective.

        Messages of two threads would mix in one group. A rank that dies ends the others' waiting at once if
        its connection breaks, and after `timeout_seconds` if not.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)))

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes what is written once."""
        return self.rank == 0

    def together(self, action: Callable[[], T]) -> list[T]:
        """Run on every rank; return all results in rank order. Collective.

        Raises:
            UserError: on every rank, if that is all that went wrong, with the first rank's message.
            RankFailure: on every rank, if the action raised anything else on any.
        """
        outcomes, cause = self._exchange(action, everyone=True)
        if any(outcome.failure is not None for outcome in outcomes):
            _fail(outcomes, cause)
        return [outcome.value for outcome in outcomes]

    def first(self, action: Callable[[], T]) -> T:
        """Run on rank 0 only; return its result on every rank. Collective; fails like `together`."""
        outcomes, cause = self._exchange(action, everyone=False)
        if outcomes[0].failure is not None:
            _fail(outcomes, cause)
        return outcomes[0].value

    def _exchange(self, action: Callable[[], T], *, everyone: bool) -> tuple[list[_Outcome], Exception | None]:
        outcome, cause = _attempt(action) if everyone or self.is_first else (_Outcome(), None)
        if not self._distributed:
            return [outcome], cause
        if everyone:
            outcomes = [_Outcome()] * self.world_size
            dist.all_gather_object(outcomes, outcome, group=self._group)
        else:
            outcomes = [outcome]
            dist.broadcast_object_list(outcomes, group=self._group, group_src=0)
        return outcomes, cause


def _fail(outcomes: list[_Outcome], cause: Exception | None) -> NoReturn:
    failed = {rank: outcome for rank, outcome in enumerate(outcomes) if outcome.failure is not None}
    if all(outcome.user for outcome in failed.values()):
        raise UserError(next(iter(failed.values())).failure) from cause
    lines = [f"rank {rank}: {outcome.failure}" for rank, outcome in failed.items()]
    raise RankFailure(lines, storage=all(outcome.storage for outcome in failed.values())) from cause


def _attempt(action: Callable[[], Any]) -> tuple[_Outcome, Exception | None]:
    """Run and record; any exception counts, because one kept to this rank would leave the others waiting."""
    try:
        return _Outcome(value=action()), None
    except UserError as error:
        return _Outcome(failure=str(error), user=True), error
    except OSError as error:
        return _Outcome(failure=f"{type(error).__name__}: {error}", storage=True), error
    except Exception as error:  # noqa: BLE001 - told to every rank and raised there
        return _Outcome(failure=f"{type(error).__name__}: {error}"), error

"""A TorchTitan Qwen3 checkpoint under Hugging Face names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from molgen_pretrain.errors import UserError
from molgen_pretrain.titan.fused import split_fused
from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.names import EMBEDDING, HEAD, hugging_face_names
from molgen_pretrain.titan.reader import DcpReader
from molgen_pretrain.titan.sizes import refuse, sizes_of

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, in torch's names; `step` is one number."""

ADAMW_SETTINGS = ("lr", "betas", "eps", "weight_decay")

STATE_PREFIX = "optimizer.state."
SETTINGS_PREFIX = "optimizer.param_groups."
_NO_WEIGHTS = ("optimizer.", "train_state.", "lr_scheduler.", "dataloader.")
_DATA_RANK = re.compile(r"dataloader\.dp_rank_\d+")


@dataclass(frozen=True)
class TitanProgress:
    """How far a TorchTitan run had come."""

    step: int
    tokens_per_rank: int
    """Labels that one data-parallel rank had seen, padding included: what `ntokens_seen` counts."""
    data_ranks: int | None
    """Data-parallel ranks, told by whose places in the data are stored; None where nobody's is."""


class TitanCheckpoint:
    """One `step-N` folder. `weights` and `sizes` are there at once, without a weight having been read; except that
    a head which may be the embedding once more is compared with it."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: no distributed checkpoint, or one that asks for code to be run; weights missing, unexpected or
                ill-shaped.
        """
        self._reader = DcpReader(folder)
        self.weights = self._find_weights()
        if self._head_is_embedding():
            del self.weights[HEAD]
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        self.sizes = sizes_of(shapes, tied=HEAD not in self.weights, where=str(folder))

    @property
    def folder(self) -> Path:
        return self._reader.folder

    def moments(self) -> dict[str, dict[str, LazyTensor]]:
        """AdamW's state of every weight, by the weight's name and then MOMENTS.

        Raises:
            UserError: some is missing, unexpected or ill-shaped, or is another optimizer's; it lists that.
        """
        found: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
        problems = []
        for name in self._optimizer_names(STATE_PREFIX, self._reader.tensor_names):
            parameter, _, key = name.removeprefix(STATE_PREFIX).rpartition(".")
            owners = hugging_face_names(parameter)
            if key not in MOMENTS or not owners:
                problems.append(f"{name}: no state of AdamW for a weight of this model")
            for owner, part in zip(owners, self._parts(name, len(owners), is_scalar=key == "step"), strict=True):
                if key in found[owner]:
                    problems.append(f"{name}: there is another tensor for {key} of {owner}")
                found[owner][key] = part
        expected = self.sizes.shapes()
        for owner, shape in expected.items():
            for key in MOMENTS:
                wanted = () if key == "step" else shape
                stored = found[owner].get(key)
                if stored is None or stored.shape != wanted:
                    there = "missing" if stored is None else f"{stored.shape}, not {wanted}"
                    problems.append(f"{STATE_PREFIX}* of {owner}, {key}: {there}")
        problems += [f"{STATE_PREFIX}* of {owner}: no weight of this model" for owner in found if owner not in expected]
        refuse(str(self.folder), problems)
        return {owner: found[owner] for owner in expected}

    def progress(self) -> TitanProgress:
        """Raises UserError where the checkpoint does not tell its step and tokens, as a model-only one does not."""
        ranks = sum(_DATA_RANK.fullmatch(name) is not None for name in self._reader.blob_names)
        return TitanProgress(self._count("train_state.step"), self._count("train_state.ntokens_seen"), ranks or None)

    def settings(self) -> dict[str, dict[str, Any]]:
        """ADAMW_SETTINGS that each weight was trained with, as far as they are stored, by the weight's name."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for name in self._optimizer_names(SETTINGS_PREFIX, self._reader.blob_names):
            parameter, _, key = name.removeprefix(SETTINGS_PREFIX).rpartition(".")
            if key in ADAMW_SETTINGS:
                value = self._reader.value(name)
                for owner in hugging_face_names(parameter):
                    found[owner][key] = value
        return dict(found)

    def not_carried(self) -> list[str]:
        """Kinds of values that nothing here reads: positions of a data loader, a scheduler's state, and the like."""
        carried = (STATE_PREFIX, SETTINGS_PREFIX, "train_state.")
        names = (name for name in self._reader.blob_names if not name.startswith(carried))
        return sorted({name.partition(".")[0] for name in names})

    def _find_weights(self) -> dict[str, LazyTensor]:
        weights: dict[str, LazyTensor] = {}
        problems = []
        for name in self._reader.tensor_names:
            if name.startswith(_NO_WEIGHTS):
                continue
            theirs = hugging_face_names(name)
            if len(theirs) != 1:
                problems.append(f"{name}: no weight of a dense Qwen3 as TorchTitan saves it")
            elif theirs[0] in weights:
                problems.append(f"{name}: there is another tensor for {theirs[0]}")
            elif not (weight := self._reader.tensor(name)).dtype.is_floating_point:
                problems.append(f"{name}: {weight.dtype}, not floating point")
            else:
                weights[theirs[0]] = weight
        refuse(str(self.folder), problems)
        return weights

    def _head_is_embedding(self) -> bool:
        """Tied models store one tensor twice, and train it once."""
        head, embedding = self.weights.get(HEAD), self.weights.get(EMBEDDING)
        if head is None or embedding is None or head.shape != embedding.shape or head.dtype != embedding.dtype:
            return False
        trained = self._optimizer_names(STATE_PREFIX, self._reader.tensor_names)
        if any(HEAD in hugging_face_names(n.removeprefix(STATE_PREFIX).rpartition(".")[0]) for n in trained):
            return False
        return torch.equal(head.read().view(torch.uint8), embedding.read().view(torch.uint8))  # NaN is NaN here

    def _parts(self, name: str, owners: int, *, is_scalar: bool) -> tuple[LazyTensor, ...]:
        """What each of the owners of a tensor has of it."""
        tensor = self._reader.tensor(name)
        if owners == 1 or is_scalar:
            return (tensor,) * owners
        return split_fused(tensor, self.sizes) if owners else ()

    def _count(self, name: str) -> int:
        if name not in {*self._reader.tensor_names, *self._reader.blob_names}:
            raise UserError(f"{self.folder}: no {name} in it: it holds a model only, no state to go on from")
        value = self._reader.value(name)
        if type(value) is not int or value < 0:
            raise UserError(f"{self.folder}: {name} is {value!r}, no count")
        return value

    @staticmethod
    def _optimizer_names(prefix: str, names: Iterable[str]) -> Iterator[str]:
        return (name for name in names if name.startswith(prefix))

"""What can be exported to TorchTitan: a checkpoint of ours or a Hugging Face folder, read a tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from molgen_pretrain.checkpoint.errors import listing
from molgen_pretrain.checkpoint.loading import Contents
from molgen_pretrain.checkpoint.state import MODEL_PREFIX, OPTIMIZER_PREFIX
from molgen_pretrain.checkpoint.storage import DTYPE_NAMES
from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import CONFIG_FILE, tensor_shapes
from molgen_pretrain.model.hf_snapshot import Snapshot
from molgen_pretrain.titan.checkpoint import ADAMW_SETTINGS, MOMENTS
from molgen_pretrain.titan.export import TrainingState
from molgen_pretrain.titan.lazy import LazyTensor
from molgen_pretrain.titan.names import HEAD
from molgen_pretrain.titan.sizes import Qwen3Sizes, sizes_of
from molgen_pretrain.tools.checkpoint_list import find_steps
from molgen_pretrain.tools.lazy_checkpoint import read_checkpoint


@dataclass(frozen=True)
class Source:
    """A model under Hugging Face names, a tied head once."""

    path: Path
    weights: dict[str, LazyTensor]
    sizes: Qwen3Sizes
    checkpoint: tuple[Contents, dict[str, LazyTensor]] | None
    """Documents and tensors of a checkpoint of ours; None for a Hugging Face folder."""

    def training_state(self, data_ranks: int) -> TrainingState:
        """Step, tokens and AdamW's state, for a TorchTitan that counts tokens on each of `data_ranks` ranks.

        Raises:
            UserError: there is none, or it is another optimizer's; it lists what is missing.
        """
        if self.checkpoint is None:
            raise UserError(f"{self.path}: a Hugging Face folder has no optimizer state; leave out --resume")
        contents, tensors = self.checkpoint
        progress = contents.state["progress"]
        settings = _settings(contents)
        expected = {name: {key: f"{OPTIMIZER_PREFIX}{name}.{key}" for key in MOMENTS} for name in self.weights}
        lacking = [full for keys in expected.values() for full in keys.values() if full not in tensors]
        lacking += [f"{key} of {name}" for name in self.weights for key in ADAMW_SETTINGS if key not in settings[name]]
        if lacking:
            raise UserError(f"{self.path}: not AdamW's state of every weight; it lacks\n{listing(lacking)}")
        return TrainingState(
            step=progress["step"],
            tokens_per_rank=progress["tokens"] // data_ranks,
            moments={name: {key: tensors[full] for key, full in keys.items()} for name, keys in expected.items()},
            settings=settings,
        )


def open_source(path: Path) -> Source:
    """A Hugging Face folder, or a checkpoint of ours (of a run: the newest), all files of which are checked.

    Raises:
        UserError: there is neither, it is damaged, or it is no Qwen3.
    """
    if (path / CONFIG_FILE).is_file():
        weights, checkpoint = _snapshot_weights(Snapshot.open(path, "SOURCE")), None
    else:
        path = find_steps(path)[-1]
        checkpoint = read_checkpoint(path)
        stored = {n: tensor for n, tensor in checkpoint[1].items() if n.startswith(MODEL_PREFIX)}
        weights = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in stored.items()}
    shapes = {name: weight.shape for name, weight in weights.items()}
    return Source(path, weights, sizes_of(shapes, tied=HEAD not in weights, where=str(path)), checkpoint)


def _snapshot_weights(snapshot: Snapshot) -> dict[str, LazyTensor]:
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    weights = {}
    for name, shape in tensor_shapes(snapshot.sizes).items():
        with snapshot.opened(name) as stored:
            dtype = dtypes[stored.get_dtype()]
        weights[name] = LazyTensor(dtype, shape, partial(snapshot.read, name, (slice(None),) * len(shape)))
    return weights


def _settings(contents: Contents) -> Mapping[str, Mapping[str, Any]]:
    if contents.optimizer is None:
        raise UserError("the checkpoint holds no optimizer; leave out --resume")
    return {name: group for group in contents.optimizer.param_groups for name in group["params"]}

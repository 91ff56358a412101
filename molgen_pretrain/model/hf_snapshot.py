"""A Hugging Face folder with a Qwen3: its sizes, and its weights, of which any part is read by itself.

JSON and safetensors are all that is ever opened: nothing that a snapshot brings along is executed. Torch is
imported when the first weight is read, not before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from molgen_pretrain.errors import UserError
from molgen_pretrain.model.hf_config import EMBEDDING, HEAD, read_json, read_sizes, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = ("BF16", "F16", "F32")
_PREFIX = "model."
_LISTED = 20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Weights, sizes and a tokenizer. Code and pickles stay where they are.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "merges.txt"]
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def resolve(source: str, setting: str = "init.from") -> Path:
    """The folder that a path or a hub id (`Qwen/Qwen3-0.6B-Base`) stands for, downloaded where needed.

    With HF_HUB_OFFLINE or HF_DATASETS_OFFLINE set the network is not asked: the hub's cache has it, or not. Raises
    UserError where neither folder nor hub has it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"{setting}={source}: no such folder; give a Hugging Face folder or a hub id (owner/name)")
    from huggingface_hub import snapshot_download  # here: it takes a third of a second

    is_offline = any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in _OFFLINE_SWITCHES)
    try:
        return Path(snapshot_download(source, allow_patterns=_HUB_FILES, local_files_only=is_offline))
    except (OSError, ValueError) as error:  # what the client raises for the network, the hub and its cache
        reason = "the environment says offline, and the cache does not have it" if is_offline else _first_line(error)
        raise UserError(
            f"{setting}={source}: no such folder, and none from the hub: {reason}. Where there is a network,"
            f" `hf download {source} --local-dir DIR` gets it: give {setting}=DIR, or HF_HOME a cache that has it"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor is: the file, its name in there, dtype and shape."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """A checked snapshot: it has every tensor that a model of its `sizes` (names of `Qwen3Arch`) has, and no other.

    A head that is stored though the sizes say it is tied is left alone, as transformers does.
    """

    folder: Path
    sizes: Mapping[str, Any]
    _tensors: Mapping[str, _Stored]

    @classmethod
    def open(cls, folder: Path, setting: str = "init.from") -> Snapshot:
        """Reads config.json and the headers of the weight files.

        Raises UserError for another architecture, weights in pickles only, damaged files, and tensors that are
        missing, unexpected or ill-shaped, which it lists.
        """
        sizes = read_sizes(folder, setting)
        where = f"{setting}={folder}"
        stored: dict[str, _Stored] = {}
        for file in _weight_files(folder, where):
            stored.update(_read_header(file, where))
        if f"{_PREFIX}norm.weight" not in stored and "norm.weight" in stored:
            # Saved from the decoder without its head, as embedding models are.
            stored = {_PREFIX + name: tensor for name, tensor in stored.items()}
        if sizes["tie_word_embeddings"]:
            stored.pop(HEAD, None)
        if problems := list(_tensor_problems(stored, tensor_shapes(sizes))):
            shown = "\n".join(f"  {line}" for line in problems[:_LISTED])
            more = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
            raise UserError(f"{where}: its tensors are not those of its config.json:\n{shown}{more}")
        return cls(folder, sizes, stored)

    @property
    def rows(self) -> int:
        """Rows of the embedding, those without a token included."""
        return self._tensors[EMBEDDING].shape[0]

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """A tensor to take slices of: `stored[0:10, 4:8]` is a Tensor [10, 4] in the dtype of the file.

        A slice lies in the file's mapped memory, which is given back when the context and the slice are gone: copy
        it where it belongs. Raises UserError where the file cannot be read.
        """
        stored = self._tensors[name]
        try:
            with safe_open(stored.file, framework="pt") as file:
                yield file.get_slice(stored.name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{stored.file}: {name} cannot be read ({error}); get the file again") from error

    def read(self, name: str, box: tuple[slice, ...]) -> Tensor:
        """One slice by itself; see `opened`."""
        with self.opened(name) as stored:
            return stored[box]


def _read_header(file: Path, where: str) -> dict[str, _Stored]:
    try:
        with safe_open(file, framework="np") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
            return {name: _Stored(file, name, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where}: {file.name} cannot be read ({error}); get the file again") from error


def _weight_files(folder: Path, where: str) -> list[Path]:
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).exists():
        listed = read_json(folder / INDEX_FILE, where).get("weight_map")
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise UserError(f"{where}: {INDEX_FILE} does not say in which files of the folder the tensors are")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{where}: its weights are in {pickles[0]}, a pickle, which may execute anything and is never opened here;"
            " convert a folder that you trust: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
        )
    raise UserError(
        f"{where}: neither {WEIGHTS_FILE} nor {INDEX_FILE} is there; give a folder with both config and weights"
    )


def _tensor_problems(stored: Mapping[str, _Stored], expected: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    yield from (f"{name}: missing" for name in expected if name not in stored)
    yield from (f"{name}: unexpected" for name in stored if name not in expected)
    for name in sorted(stored.keys() & expected.keys()):
        if stored[name].shape != expected[name]:
            yield f"{name}: is {list(stored[name].shape)}, its config.json says {list(expected[name])}"
        if stored[name].dtype not in _DTYPES:
            yield f"{name}: is {stored[name].dtype}, only {', '.join(_DTYPES)} can be read"

"""A file that numbers are appended to, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molgen_pretrain.data.cache import sync_to_disk


class ArrayFile:
    """A new file. After an `append` that failed (a full disk) the same one may be tried again."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.size = 0
        self._path = path
        self.dtype = dtype
        self._file = path.open("xb", buffering=0)

    def append(self, numbers: NDArray) -> None:
        """Converts to the file's type. Raises OSError as the system does."""
        content = memoryview(numbers.astype(self.dtype, copy=False).tobytes())
        done = 0
        while done < len(content):
            done += os.pwrite(self._file.fileno(), content[done:], self.size + done)
        self.size += len(content)

    def finish(self) -> None:
        """Cuts what a failed append left, and flushes to disk: some systems notice only then that it is full."""
        self._file.truncate(self.size)
        self.close()
        sync_to_disk(self._path)

    def close(self) -> None:
        self._file.close()

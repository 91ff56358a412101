"""Folders that a tool writes wholly or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from molgen_pretrain.errors import UserError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden path beside `target`, for the block to make; it gets its name at the end, and is deleted at a failure.

    Raises:
        UserError: `target` exists.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; give a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Reading single lines by number, and noticing when the files are no longer those that were indexed."""

from __future__ import annotations

import os
from collections import OrderedDict

from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.errors import UserError

# Shards may be many and descriptors few (a soft limit of 1,024 is common).
_MAX_OPEN_FILES = 64


class LineReader:
    """Bytes of lines through `os.pread`: no shared file position, so a fork needs no care."""

    def __init__(self, index: LineIndex) -> None:
        self._index = index
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def __reduce__(self) -> tuple[type[LineReader], tuple[LineIndex]]:
        return LineReader, (self._index,)

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, line: int) -> bytes:
        """The line with its newline. Raises UserError if its file is gone or changed its size."""
        file, start, end = self._index.byte_range(line)
        try:
            descriptor = self._descriptor(file)
            size = os.fstat(descriptor).st_size
            content = os.pread(descriptor, end - start, start)
        except OSError as error:
            raise UserError(f"cannot read {self._index.locate(line)}: {error.strerror}") from error
        indexed_size = self._index.meta.files[file].size
        if size != indexed_size or len(content) != end - start:
            raise changed_file(self._index.locate(line), f"it had {indexed_size:,} bytes and has {size:,}")
        return content

    def _descriptor(self, file: int) -> int:
        if file in self._descriptors:
            self._descriptors.move_to_end(file)
            return self._descriptors[file]
        if len(self._descriptors) >= _MAX_OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        descriptor = os.open(self._index.meta.files[file].path, os.O_RDONLY)
        self._descriptors[file] = descriptor
        return descriptor


def changed_file(location: str, what: str) -> UserError:
    return UserError(
        f"{location}: the file changed after it was indexed ({what}); start again to index it anew, and leave"
        " data files alone while a run reads them"
    )

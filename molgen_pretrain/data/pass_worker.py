"""A helper process of the one-time pass: chunks in, counts out. `pass_pool` starts it.

Over stdin come pickles of UnitRules and then of Chunks, over stdout goes one pickle for each Chunk. The end of
stdin is the end: that is how it notices that the process which started it is gone, however that ended.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import IO

from molgen_pretrain.data.chunk import Chunk, ChunkCounts, UnitRules, count_chunk
from molgen_pretrain.errors import UserError


@dataclass(slots=True)
class ChunkFailure:
    """An exception on its way to the main process: a user's mistake, or a defect with its traceback."""

    message: str
    is_user_error: bool


def main() -> None:
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    try:
        rules: UnitRules = pickle.load(requests)  # noqa: S301 - from the process that started this one
    except EOFError:
        return
    # In a thread, which gets a heap of its own from malloc: in the main one, which loading the tokenizer has left
    # full of holes, encoding takes up to 1.7 times as long.
    thread = threading.Thread(target=_serve, args=(requests, replies, rules))
    thread.start()
    thread.join()


def _serve(requests: IO[bytes], replies: IO[bytes], rules: UnitRules) -> None:
    try:
        while True:
            chunk = pickle.load(requests)  # noqa: S301
            pickle.dump(_answer(chunk, rules), replies, protocol=pickle.HIGHEST_PROTOCOL)
            replies.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # at once, and without a complaint about what nobody reads


def _answer(chunk: Chunk, rules: UnitRules) -> ChunkCounts | ChunkFailure:
    try:
        return count_chunk(chunk, rules)
    except UserError as error:
        return ChunkFailure(str(error), is_user_error=True)
    except Exception:  # noqa: BLE001 - reported by the main process, which ends the pass
        return ChunkFailure(traceback.format_exc(), is_user_error=False)

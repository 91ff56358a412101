"""The exceptions that the command line prints without a traceback, and the form in which it prints them."""

from __future__ import annotations

import os

FULL_ERROR = "HYDRA_FULL_ERROR"


class UserError(ValueError):
    """A mistake in what the user gave: configuration, paths, files.

    The command line prints its message without a traceback and exits non-zero. A message names what is
    wrong (`section.key=value` where it is a setting), the rule, and the legal values or the fix.
    """


class SharedError(UserError):
    """Raised on every rank with the same message, of which one rank of a node prints it."""


class RankLostError(UserError):
    """Another rank died, failed or hangs. One rank has said so on stderr by then: nothing is left to print."""


def error_lines(message: str) -> str:
    """`error: ` before each line, and the rank where a launcher started several."""
    rank = os.environ.get("RANK")
    prefix = "error: " if rank is None else f"[rank {rank}] error: "
    return "\n".join(prefix + line for line in message.splitlines())


def full_errors() -> bool:
    """Whether the environment asks for tracebacks."""
    return os.environ.get(FULL_ERROR, "0") not in ("", "0")

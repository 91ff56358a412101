"""Connections between rank 0 and every other rank, which the kernels at both ends watch.

The end of a process, however it ends, closes its connections: the other end knows within a millisecond, and
without the dying process doing anything. A host that vanishes stops answering the kernel's keep-alive probes.
A process that is merely busy, even one whose interpreter lock is held for minutes, is not mistaken for a dead
one, as it would be by heartbeats that a Python thread has to send.
"""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from contextlib import suppress
from typing import Any

GRACE_SECONDS = 60  # a host that answers no probe for so long is lost
_SEND_SECONDS = 1.0  # a rank that takes no more bytes does not hold up the others
_CONNECT_SECONDS = 10.0
_MESSAGE_BYTES = 65536


class Link:
    """One end of a connection that carries JSON objects, one per line."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rank: int | None = None  # whose the other end is, once known
        self.gone = "died"  # what to say of the other end once it is gone
        self._unread = b""
        self._blocked = False
        sock.settimeout(_SEND_SECONDS)
        _keep_alive(sock)
        _open_links.add(self)

    def send(self, message: dict[str, Any]) -> None:
        """Never raises: that the other end is gone shows in `receive`."""
        if self._blocked:
            return
        try:
            self.sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._blocked = True  # a line may have gone half: nothing may follow it

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have come, None once the other end is gone. To be called when there is something."""
        try:
            data = self.sock.recv(_MESSAGE_BYTES)
        except ConnectionError:  # reset: the process ended with something unread
            return None
        except OSError as error:
            if error.errno is None:  # our own time-out, not the network's
                return []
            self.gone = "cannot be reached any more"
            return None
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines] if len(self._unread) < _MESSAGE_BYTES else None
        except (ValueError, TypeError):  # a port scanner, not one of our ranks
            return None

    def part(self, deadline: float) -> None:
        """Close once the other end has taken all that was sent, or at `deadline` (time.monotonic).

        Closing at once would reset the connection if something came that nobody has read, and a reset may
        overtake a last message that the network has to send again.
        """
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            while (seconds := deadline - time.monotonic()) > 0:
                self.sock.settimeout(seconds)
                if not self.sock.recv(_MESSAGE_BYTES):
                    break
        self.close()

    def close(self) -> None:
        _open_links.discard(self)
        self.sock.close()


def listen(backlog: int) -> socket.socket:
    """A free port on every address of this host."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def connect(host: str, port: int) -> socket.socket:
    """Raises OSError where nobody answers."""
    return socket.create_connection((host, port), timeout=_CONNECT_SECONDS)


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe_seconds = max(1, GRACE_SECONDS // 6)
    values = {
        "TCP_KEEPIDLE": probe_seconds,
        "TCP_KEEPINTVL": probe_seconds,
        "TCP_KEEPCNT": 5,
        "TCP_USER_TIMEOUT": GRACE_SECONDS * 1000,
    }
    for name, value in values.items():
        if hasattr(socket, name):  # Linux has them all, other systems some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# A forked data worker outlives a killed rank by seconds and would keep the rank's connections open.
_open_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _close_in_child() -> None:
    for link in list(_open_links):
        link.sock.close()


os.register_at_fork(after_in_child=_close_in_child)

"""The thread that knows of the other ranks while the main thread trains, or is blocked."""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from molgen_pretrain.parallel.activity import Activity, Report, survey
from molgen_pretrain.parallel.ending import Ending, Verdict
from molgen_pretrain.parallel.links import Link, connect, listen

_REPORTS_PER_SECOND = 100  # that rank 0 takes from all others together, each at most 10
_LONGEST_TURN_SECONDS = 5.0  # a process that was stopped for an hour has not stood still for one
_PART_SECONDS = 1.0  # for goodbyes to arrive
_ENDED = "its goodbye"  # the last phase of a rank that is done


@dataclass(frozen=True)
class Member:
    """A rank as the user can find it."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Invitation:
    """What rank 0 lets the others know, so that they can connect."""

    host: str
    port: int
    secret: str
    sender: Member


class Watch:
    """This rank's end of the star around rank 0: the thread, and what the main thread tells it.

    Messages: hello (who I am), at (where I am), failed and stuck (so my main thread says), end (the verdict,
    from rank 0 only), bye. The main thread and each turn of the thread hold the lock.
    """

    def __init__(self, me: Member, size: int, activity: Activity, ending: Ending, timeout_seconds: float) -> None:
        self._me = me
        self._size = size
        self._activity = activity
        self._place = activity.place
        self._report_seconds = min(1.0, max(0.1, size / _REPORTS_PER_SECOND))
        self._ending = ending
        self._timeout_seconds = timeout_seconds
        self._members = {me.rank: me}
        self._reports = {me.rank: Report()}
        self._links: dict[int, Link] = {}
        self._secret = secrets.token_hex(16)
        self._done = False
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._register(self._wake, lambda: None)
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    # Called by the main thread.

    def open(self) -> Invitation:
        """Rank 0: accept the others from now on."""
        listener = listen(backlog=self._size)
        self._register(listener, partial(self._welcome, listener))
        self._thread.start()
        # Where the others found the rendezvous they find this too.
        host = os.environ.get("MASTER_ADDR") or self._me.host
        return Invitation(host, listener.getsockname()[1], self._secret, self._me)

    def join(self, invitation: Invitation) -> None:
        """Any other rank. Raises OSError where rank 0 cannot be reached."""
        link = Link(connect(invitation.host, invitation.port))
        self._introduce(link, invitation.sender)
        self._register(link.sock, partial(self._read, link))
        link.send({"hello": [self._me.rank, self._me.host, self._me.pid], "secret": invitation.secret})
        self._thread.start()

    def failed(self, error: str) -> None:
        """This rank leaves with an error of its own."""
        with self._lock:
            self._report_own()
            if self._me.rank == 0:
                self._on_failed(0, error)
            else:
                self._send({"failed": error})

    def timed_out(self) -> None:
        """A collective of this rank has timed out: rank 0 is to say who stands where."""
        with self._lock:
            self._report_own()
            if self._me.rank == 0:
                self._on_stuck()
            else:
                self._send({"stuck": True})

    def goodbye(self) -> None:
        """This rank is done: its end is no death."""
        with self._lock:
            self._send({"bye": True})
            self._waker.send(b"!")
            self._done = True  # last, since the thread may see it and close its end at any time
        self._thread.join()
        self._waker.close()

    # The thread.

    def _run(self) -> None:
        last = due = time.monotonic()
        while not self._done:
            ready = self._selector.select(max(0.0, due - time.monotonic()))
            with self._lock:
                if self._done:  # no word after the goodbye
                    break
                for key, _ in ready:
                    key.data()
                now = time.monotonic()
                if now >= due:
                    self._tick(min(now - last, _LONGEST_TURN_SECONDS))
                    last, due = now, now + self._report_seconds
        deadline = time.monotonic() + _PART_SECONDS
        for link in self._links.values():
            link.part(deadline)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _register(self, sock: socket.socket, action: Callable[[], None]) -> None:
        self._selector.register(sock, selectors.EVENT_READ, action)

    def _send(self, message: dict[str, Any]) -> None:
        for link in self._links.values():
            link.send(message)

    def _welcome(self, listener: socket.socket) -> None:
        """A new connection; its hello will say whose it is."""
        try:
            sock, _ = listener.accept()
        except OSError:  # it has gone again
            return
        link = Link(sock)
        self._register(sock, partial(self._read, link))

    def _introduce(self, link: Link, member: Member) -> None:
        link.rank = member.rank
        self._links[member.rank] = link
        self._members[member.rank] = member
        self._reports[member.rank] = Report()

    def _read(self, link: Link) -> None:
        messages = link.receive()
        for message in messages or ():
            if link.rank is not None:
                self._take(link.rank, message)
            elif message.get("secret") == self._secret:
                self._introduce(link, Member(*message["hello"]))
        if messages is None:
            self._selector.unregister(link.sock)
            link.close()
            if link.rank is not None:
                del self._links[link.rank]
                self._on_gone(link.rank, link.gone)

    def _take(self, rank: int, message: dict[str, Any]) -> None:
        (kind, value), *_ = message.items()
        if kind == "at":
            self._reports[rank] = Report(*value)
        elif kind == "failed":
            self._on_failed(rank, value)
        elif kind == "stuck":
            self._on_stuck()
        elif kind == "end":
            self._decide(Verdict(*value))
        elif kind == "bye":
            self._reports[rank] = Report(self._reports[rank].step, _ENDED)

    def _on_failed(self, rank: int, error: str) -> None:
        self._decide(Verdict(f"{self._members[rank]} failed {self._reports[rank]}: {error}", rank, failed=True))

    def _on_gone(self, rank: int, how: str) -> None:
        if self._reports[rank].phase != _ENDED:
            self._decide(Verdict(f"{self._members[rank]} {how} {self._reports[rank]}, by its last report", rank))

    def _on_stuck(self) -> None:
        self._decide(Verdict(f"no progress for {self._timeout_seconds:.0f} s in a collective: {survey(self._reports)}"))

    def _decide(self, verdict: Verdict) -> None:
        if self._ending.decide(verdict) and self._me.rank == 0:
            self._send({"end": [verdict.message, verdict.culprit, verdict.failed]})

    def _tick(self, seconds: float) -> None:
        own = self._reports[self._me.rank]
        if self._activity.place is self._place:
            own.still_seconds += seconds
        for rank, report in self._reports.items():
            if rank != self._me.rank:
                report.silent_seconds += seconds
        self._report_own()
        if self._me.rank == 0 and self._stand_still_apart():
            self._on_stuck()
        self._ending.enforce()

    def _report_own(self) -> None:
        """Note where the main thread is, and tell."""
        own = self._reports[self._me.rank]
        if self._activity.place is not self._place:
            self._place = self._activity.place
            own.step, own.phase = self._place
            own.still_seconds = 0.0
        self._send({"at": [own.step, own.phase, own.still_seconds]})

    def _stand_still_apart(self) -> bool:
        """Nobody has moved for the time-out, and not because all do the same long thing."""
        if len(self._reports) < self._size:
            return False
        working = [report for report in self._reports.values() if report.phase != _ENDED]
        still = all(report.standstill_seconds >= self._timeout_seconds for report in working)
        return still and len({(report.step, report.phase) for report in working}) > 1

"""What the watch over the ranks says and leaves alone; with real processes: tests/distributed/test_peers.py."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch.distributed as dist

from molgen_pretrain.errors import RankLostError, UserError
from molgen_pretrain.job import report_errors
from molgen_pretrain.parallel.activity import Activity, Report, survey
from molgen_pretrain.parallel.distributed import joined_world
from molgen_pretrain.parallel.ending import Ending
from molgen_pretrain.parallel.links import Link
from molgen_pretrain.parallel.peers import Peers
from molgen_pretrain.parallel.watch import Member, Watch

GLOO_CLOSED = "[/a/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:48011. This is ..."
GLOO_TIMEOUT = "[/a/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"


def test_a_lone_process_has_no_thread_and_its_errors_go_on_unchanged() -> None:
    before = threading.active_count()
    peers = Peers()
    error = RuntimeError(GLOO_CLOSED)
    with pytest.raises(RuntimeError) as raised, peers.watching(lambda value: value), peers.explained():
        raise error
    assert raised.value is error
    assert threading.active_count() == before


def test_survey_groups_ranks_and_begins_with_those_that_stopped_first() -> None:
    waiting = {rank: Report(12, "backward", 600.2) for rank in (0, 2, 3, 4, 6)}
    text = survey({**waiting, 1: Report(12, "data", 605.0), 5: Report(11, "optimizer", 590.0, 20.0)})
    assert text == (
        "rank 5 at step 11, in optimizer, silent for 20 s; rank 1 at step 12, in data; "
        "ranks 0, 2-4, 6 at step 12, in backward"
    )


def test_entering_the_same_phase_again_is_a_move() -> None:
    activity = Activity()
    activity.enter(3, "validation")
    before = activity.place
    activity.enter(3, "validation")
    assert activity.place == before
    assert activity.place is not before


def test_messages_survive_being_cut_and_joined() -> None:
    ours, theirs = _pair()
    link = Link(ours)
    theirs.sendall(b'{"at": [1, "da')
    assert link.receive() == []
    theirs.sendall(b'ta", 0.0]}\n{"bye": true}\n')
    assert link.receive() == [{"at": [1, "data", 0.0]}, {"bye": True}]
    theirs.close()
    assert link.receive() is None
    link.close()


def test_strangers_on_the_port_are_nobody(monkeypatch) -> None:
    """A port scanner that sends garbage, or knows the form but not the secret, is not taken for a rank."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    ending = Ending(0)
    watch = Watch(Member(0, "here", 1), 2, Activity(), ending, 600)
    invitation = watch.open()
    for hello in (
        b"GET / HTTP/1.0\r\n\r\n",
        b'{"hello": [1, "there", 2], "secret": "guess"}\n',
        b"[1]\n",
        b"x" * 70_000,
    ):
        with socket.create_connection(("localhost", invitation.port), timeout=5) as stranger:
            stranger.sendall(hello)
    other_ending = Ending(1)
    other = Watch(Member(1, "here", 2), 2, Activity(), other_ending, 600)
    other.join(invitation)
    other.failed("a real rank is heard")
    assert ending.known.wait(5)
    assert ending.verdict is not None
    assert ending.verdict.message == "rank 1 (here, pid 2) failed at step 0, in start-up: a real rank is heard"
    assert other_ending.known.wait(5), "rank 0's verdict reaches all"
    ending.main_thread_leaves()
    other_ending.main_thread_leaves()
    other.goodbye()
    watch.goodbye()


def test_a_goodbye_is_a_ranks_last_word(monkeypatch) -> None:
    """At any moment of its thread, which reports all the time."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    ending = Ending(0)
    rank_0 = Watch(Member(0, "here", 0), 40, Activity(), ending, 600)
    invitation = rank_0.open()
    others = [Watch(Member(rank, "here", rank), 40, Activity(), Ending(rank), 600) for rank in range(1, 40)]
    for other in others:
        other._report_seconds = 0.0002
        other.join(invitation)
    for other in others:
        other.goodbye()
    assert not ending.known.wait(0.3), ending.verdict
    rank_0.goodbye()


@pytest.mark.parametrize(("text", "is_collective"), [(GLOO_CLOSED, True), ("CUDA out of memory", False)])
def test_only_errors_of_collectives_are_explained(text: str, is_collective: bool, monkeypatch) -> None:
    """Also where another error was made of them; whatever else a rank raises stays what it is."""
    peers = {rank: Peers(rank, 2, 600) for rank in range(2)}
    shared: list = []
    monkeypatch.setattr("signal.alarm", lambda seconds: None)  # the process that is bounded by it is pytest's
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    entered = [peer.watching(lambda value: shared.append(value) or shared[0]) for peer in peers.values()]
    for manager in entered:
        manager.__enter__()
    with pytest.raises(ZeroDivisionError), peers[1].explained():
        raise ZeroDivisionError("of its own")
    error = UserError("could not save")
    error.__cause__ = RuntimeError(text)
    with pytest.raises(RankLostError if is_collective else UserError) as raised, peers[0].explained():
        raise error
    assert ("rank 1" in str(raised.value) and "of its own" in str(raised.value)) == is_collective
    for peer in peers.values():
        peer._watch.goodbye()


def test_the_command_line_leaves_with_1_and_does_not_repeat_the_cause(capfd) -> None:
    def lose() -> None:
        raise RankLostError("rank 1 died")

    with pytest.raises(SystemExit) as exit_:
        report_errors(lose, wants_traceback=False)
    assert exit_.value.code == 1
    assert capfd.readouterr() == ("", "")


def test_ranks_that_never_come_are_a_users_mistake(monkeypatch) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=f"timeout_seconds=1: the 2 ranks did not come together at localhost:{port}"),
        joined_world("cpu", needs_group=True, timeout_seconds=1),
    ):
        pass
    assert time.monotonic() - began < 10
    assert not dist.is_initialized()


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("localhost", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    return ours, theirs

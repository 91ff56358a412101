"""Signals as wishes: heard while the main thread is busy in C, counted once each, granted or final; or as the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from molgen_pretrain.signals import SIGNALS, EndAtOnce, Interrupted, StopRequest

# Like a rank in a collective: without the interpreter lock, and no signal brings it back to Python.
BLOCKED = """
import ctypes
from molgen_pretrain.signals import StopRequest
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with StopRequest(announces=True):
    lock(mutex)
    print("blocked", flush=True)
    lock(mutex)
"""


@pytest.fixture
def heard():
    """Wait until a stop request has a signal."""

    def wait(stop: StopRequest) -> int:
        deadline = time.monotonic() + 5
        while not stop.signal and time.monotonic() < deadline:
            time.sleep(0.001)
        return stop.signal

    return wait


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_wish(number: signal.Signals, heard) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert heard(stop) == number
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_echo_within_half_a_second_is_no_second_wish(heard) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        heard(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert stop.signal == signal.SIGINT


def test_signals_of_a_forked_worker_are_its_own(heard) -> None:
    with StopRequest() as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)  # holds the socket open for longer than the parent listens
            os._exit(0)
        time.sleep(0.1)
        assert stop.signal == 0
    os.waitpid(child, 0)


def test_a_second_signal_ends_a_blocked_process_at_once() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert process.poll() is None, "the first one is a wish"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=2)
    assert process.returncode == 128 + signal.SIGTERM
    assert said == "signal 15: stopping after this step; once more to exit at once\n"


def test_no_save_is_announced_where_the_run_is_lost(capfd, heard) -> None:
    with StopRequest(announces=True, is_lost=lambda: True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard(stop) == signal.SIGTERM
    assert capfd.readouterr().err == ""


# Deaf as in a rendezvous that waits for other nodes.
DEAF = """
import ctypes
from molgen_pretrain import signals
signals._LEAVE_SECONDS = 0.5
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with signals.EndAtOnce():
    lock(mutex)
    print("blocked", flush=True)
    lock(mutex)
"""


def test_before_the_first_step_a_signal_interrupts() -> None:
    before = signal.getsignal(signal.SIGUSR1)

    def busy() -> None:
        with EndAtOnce():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)

    with pytest.raises(Interrupted) as interrupt:
        busy()
    assert interrupt.value.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_wish_within_is_none_of_it_and_an_echo_interrupts_nothing(heard) -> None:
    with EndAtOnce() as end, StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard(stop) == signal.SIGTERM
        assert end.signal == 0
    with EndAtOnce() as end:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            heard(end)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        assert end.signal == signal.SIGINT


def test_a_process_that_does_not_come_out_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)  # from the word to the lock
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=10) == 128 + signal.SIGUSR2

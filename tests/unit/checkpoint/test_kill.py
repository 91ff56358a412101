"""SIGKILL at random moments: whatever it hits, what is committed stays sound, and the next life goes on from it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

LIVES = 10
MILESTONES = 5

# One interpreter imports torch and runs nothing with it; every life is a fork of it that starts at once.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
import torch._dynamo  # the first optimizer step would import it in every life
from molgen_pretrain.checkpoint.checkpointer import Checkpointer

folder, asynchronous, rounds = Path(sys.argv[1]), sys.argv[2] == "async", int(sys.argv[3])
chance = random.Random(7)

def live():
    torch.set_num_threads(1)
    model = torch.nn.Linear(600, 600)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.weight.grad, model.bias.grad = torch.ones(600, 600), torch.ones(600)
    optimizer.step()
    milestones = range(0, 10**6, int(sys.argv[4]))
    checkpointer = Checkpointer(folder, keep_latest_k=2, milestones=milestones, asynchronous=asynchronous)
    loaded = checkpointer.load_newest(model=model, optimizer=optimizer, fallback=False)
    step = loaded[1]["step"] if loaded else 0
    momentum = optimizer.state[model.weight]["momentum_buffer"]
    assert not loaded or (model.weight == step).all() and (momentum == step).all(), step
    print(step, flush=True)
    while True:
        step += 1
        with torch.no_grad():
            model.weight.fill_(step)
            momentum.fill_(step)
        checkpointer.save(step, model=model, optimizer=optimizer, state={"step": step})

for _ in range(rounds):
    began = folder.stat().st_mtime_ns
    child = os.fork()
    if not child:
        try:
            live()
        except BaseException as error:
            print("FAILED", repr(error), flush=True)
        os._exit(1)
    while folder.stat().st_mtime_ns == began:  # until it saves
        if os.waitpid(child, os.WNOHANG)[0]:
            sys.exit("a life ended by itself")
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_is_committed_survives_every_kill(mode: str, tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # where syncing costs nothing, so that more saves meet a kill
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        command = [sys.executable, "-c", SCRIPT, folder, mode, str(LIVES), str(MILESTONES)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        left = {entry.name for entry in Path(folder).iterdir()}
    assert result.returncode == 0, result.stdout + result.stderr
    steps = [int(line) for line in result.stdout.splitlines()]
    assert len(steps) == LIVES
    assert steps == sorted(steps)
    assert steps[-1] > LIVES, "lives get somewhere"
    assert {f"step-{step:08d}" for step in range(MILESTONES, steps[-1] + 1, MILESTONES)} <= left

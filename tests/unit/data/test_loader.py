"""Worker processes: signals, errors, a kill, and what a fork or spawn must carry."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.errors import UserError


@pytest.fixture
def dataset(write_corpus: Callable[..., Path], tokenizer: UnitTokenizer, tmp_path: Path) -> JsonlTaggedPackedDataset:
    return JsonlTaggedPackedDataset(
        paths=write_corpus(500),
        tokenizer=tokenizer,
        seq_len=96,
        local_batch_size=2,
        cache_dir=tmp_path / "cache",
        min_emb_len=8,
    )


def worker_pid() -> int:
    [worker] = multiprocessing.active_children()
    assert worker.pid is not None
    return worker.pid


def test_signals_are_left_to_the_main_process(dataset: JsonlTaggedPackedDataset) -> None:
    batches = iter(build_loader(dataset, num_workers=1, prefetch_factor=1))
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker_pid(), number)
    assert len(list(islice(batches, 20))) == 20


def test_a_killed_worker_is_a_clear_error(dataset: JsonlTaggedPackedDataset) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(build_loader(dataset, num_workers=1, prefetch_factor=1))
    assert signal.getsignal(signal.SIGCHLD) is before
    next(batches)
    os.kill(worker_pid(), signal.SIGKILL)
    time.sleep(0.1)  # nothing is raised here, in the middle of training
    with pytest.raises(RuntimeError, match="ended from outside, most often because memory"):
        list(islice(batches, 1000))


_EXIT_WITH_A_LIVE_LOADER = """
import sys
from pathlib import Path
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.loader import build_loader
from molgen_pretrain.data.tokenizer import UnitTokenizer
corpus, tokenizer, cache = map(Path, sys.argv[1:])
dataset = JsonlTaggedPackedDataset(paths=corpus, tokenizer=UnitTokenizer.load(tokenizer), seq_len=96,
                                   local_batch_size=2, cache_dir=cache, min_emb_len=8)
loader = build_loader(dataset, num_workers=2)
batches = iter(loader)
next(batches)
loader.cycle = batches
sys.exit(3)
"""


def test_a_process_ends_while_something_refers_to_its_loader(
    write_corpus: Callable[..., Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    arguments = [str(write_corpus(300)), str(tokenizer_folder), str(tmp_path / "cache")]
    command = [sys.executable, "-c", _EXIT_WITH_A_LIVE_LOADER, *arguments]
    assert subprocess.run(command, timeout=60, check=False).returncode == 3


def test_a_mistake_found_in_a_worker_reads_as_in_the_main_process(
    dataset: JsonlTaggedPackedDataset,
) -> None:
    path, _ = dataset.locate([0])[0].rsplit(":", 1)
    Path(path).write_bytes(b"")
    with pytest.raises(UserError, match="the file changed after it was indexed") as caught:
        list(islice(build_loader(dataset, num_workers=1), 500))
    assert "Traceback" not in str(caught.value)


def test_a_fork_after_the_tokenizer_ran_is_quiet_and_keeps_the_environment(
    dataset: JsonlTaggedPackedDataset, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    next(iter(dataset))  # runs the tokenizer's threads in this process
    next(iter(build_loader(dataset, num_workers=2)))
    assert capfd.readouterr().err == ""
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_starting_workers_leaves_the_random_state_alone(dataset: JsonlTaggedPackedDataset) -> None:
    before = torch.random.get_rng_state()
    next(iter(build_loader(dataset, num_workers=1)))
    next(iter(build_loader(dataset)))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_spawned_workers_give_the_same(dataset: JsonlTaggedPackedDataset) -> None:
    loader = build_loader(dataset, num_workers=1)
    loader.multiprocessing_context = "spawn"
    spawned = [batch.input_ids for batch in islice(loader, 3)]
    assert all(torch.equal(a, b.input_ids) for a, b in zip(spawned, dataset, strict=False))

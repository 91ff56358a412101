"""Memory does not grow with steps, though no two batches are alike."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from molgen_pretrain.model.loss import IGNORE_INDEX
from molgen_pretrain.model.qwen3 import Qwen3Arch, build_on_meta, materialize

SEQ_LEN, ROWS = 512, 384
ARCH = Qwen3Arch(
    vocab_size=ROWS, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=64,
)  # fmt: skip


def resident_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_every_batch_has_other_borders_and_another_number_of_labels() -> None:
    # A CPU's library keeps what it has prepared for each shape of a bfloat16 product: 70 MiB in so many steps, where
    # shapes followed the batch.
    model = build_on_meta(ARCH.hf_config(eos_token_id=0, pad_token_id=0), document_mask=True)
    materialize(model, device=torch.device("cpu"), seed=0)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        ids = torch.randint(ROWS, (1, SEQ_LEN), generator=generator)
        labels = ids.clone()
        labels[:, : int(torch.randint(256, (1,), generator=generator))] = IGNORE_INDEX
        borders = [0, *sorted(set(torch.randint(1, SEQ_LEN, (4,), generator=generator).tolist())), SEQ_LEN]
        lengths = [end - begin for begin, end in itertools.pairwise(borders)]
        positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels, positions).total
        loss.backward()
        model.zero_grad()

    for _ in range(100):
        step()
    before = resident_mib()
    for _ in range(300):
        step()
    assert resident_mib() - before < 20

"""Mixtures, compressed shards, document mask and token classes in whole runs."""

import gzip
import signal
from pathlib import Path

import pytest

from molgen_pretrain.config.schema import SAMPLE_DIR

EXACT = ("loss", "grad_norm", "epoch", "epoch/small", "epoch/large", "tokens", "sequences", "loss/smiles")


@pytest.fixture
def mixture(faulty, tiny) -> tuple[str, ...]:
    """Overrides of a run over a plain and a compressed source, three parts to one."""
    lines = (SAMPLE_DIR / "train" / "train_0.jsonl").read_bytes().splitlines(keepends=True)
    folder: Path = faulty.app.folder
    (folder / "large.jsonl").write_bytes(b"".join(lines[:300]))
    (folder / "small.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[300:340])))
    sources = ", ".join(f"{{path: {folder / name}, weight: {weight}}}" for name, weight in
                        (("large.jsonl", 3), ("small.jsonl.gz", 1)))  # fmt: skip
    return (
        *tiny, f"data.sources=[{sources}]", "data.document_mask=true", "metrics.token_class_loss=true",
        "validation.enable=false", "training.seq_len=1024", "checkpoint.interval=5",
    )  # fmt: skip


def test_a_mixture_resumes_exactly_in_either_cache_mode(faulty, mixture) -> None:
    output, whole = faulty.run(*mixture, "data.cache=tokens", "run_name=whole")
    assert "source large: 75 % of the sequences" in output
    assert "source small: 25 % of the sequences" in output
    killed = ("at", {"step": 13, "phase": "forward", "action": "signalled", "number": signal.SIGKILL})
    options = (*mixture, "data.cache=lengths", "data.num_workers=1", "run_name=killed")
    faulty.run(*options, faults=[killed], code=-signal.SIGKILL)
    output, resumed = faulty.run(*options)
    assert "start: after step 10" in output
    assert "order of the data" not in output
    assert resumed.curve(*EXACT) == whole.curve(*EXACT)


def test_losses_by_class_add_up_and_the_mask_changes_them(faulty, mixture) -> None:
    classes = ("smiles", "tags", "coordinates", "conformer")
    _, masked = faulty.run(*mixture, "run_name=masked")
    for row in masked.rows().values():
        parts = sum(row[f"loss/{name}"] * row[f"tokens_frac/{name}"] for name in classes)
        assert parts == pytest.approx(row["loss"], rel=1e-5)
    _, plain = faulty.run(*mixture, "data.document_mask=false", "run_name=plain")
    first_masked, first_plain = masked.rows()[1], plain.rows()[1]
    assert first_plain["epoch"] == first_masked["epoch"]  # the same sequences
    # A separator followed by another unit trains only without the mask.
    assert first_plain["tokens"] > first_masked["tokens"]
    assert first_plain["loss"] != first_masked["loss"]

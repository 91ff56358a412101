"""Damaged lines and files, of any kind, from the pass to the batches: skipped and counted, never raised."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molgen_pretrain.data.chunk import UnitRules
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.file_pass import FilePass
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.tokenizer import UnitTokenizer

GOOD = b'{"canonical_smiles": "CO", "embedded_smiles": "[C]<1.25,0.03,-0.94>[O]<0.1,0.2,0.3>"}'
MIN_EMB_LEN = 16

# What real files hold where something went wrong, and what breaks parsers.
ODD = st.sampled_from(
    [
        b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\n\n", b"\0", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", rb"\ud800",
        rb"\udc00", "\u2028".encode(), "\U0001f9ea".encode(), b'"', b"\\", b"{", b"}", b"[", b"]", b"[" * 2000, b",",
        b"NaN", b"1e999", b"-0", b"null", b'"canonical_smiles": 5, ', b'"embedded_smiles": ["C"], ', b"x" * 3000,
    ]
)  # fmt: skip


@st.composite
def mutated_lines(draw: st.DrawFn) -> bytes:
    """A good line after some cuts, insertions and changed bytes; its newline may be lost."""
    line = bytearray(draw(st.sampled_from([GOOD, GOOD, b"", b"{}", GOOD + GOOD])) + b"\n")
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(line)))
        match draw(st.sampled_from(["cut", "insert", "byte"])):
            case "cut":
                del line[place : place + draw(st.integers(1, 40))]
            case "insert":
                line[place:place] = draw(ODD)
            case "byte":
                line[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(line)


FILES = st.lists(st.lists(mutated_lines(), max_size=12).map(b"".join), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    contents=FILES, chunk_bytes=st.sampled_from([5, 100, 1000, 100_000]), cache=st.sampled_from(["lengths", "tokens"])
)
def test_every_line_is_a_unit_or_counted_as_bad(
    contents: list[bytes], chunk_bytes: int, cache: str, tokenizer: UnitTokenizer
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # One line that is surely good: data without any is refused.
        files = [Path(folder) / f"{number}.jsonl" for number in range(len(contents) + 1)]
        for file, content in zip(files, [GOOD, *contents], strict=True):
            file.write_bytes(content)
        newlines = sum(content.count(b"\n") + (content[-1:] not in (b"\n", b"")) for content in [GOOD, *contents])

        dataset = JsonlTaggedPackedDataset(
            paths=files,
            tokenizer=tokenizer,
            seq_len=128,
            local_batch_size=2,
            cache_dir=Path(folder) / "cache",
            min_emb_len=MIN_EMB_LEN,
            infinite=False,
            last_batch="pad",
            cache=cache,
        )
        summary = dataset.summary()
        assert summary.lines == newlines
        assert summary.units + sum(summary.bad_lines.values()) == newlines
        assert len(summary.first_bad_lines) == min(10, sum(summary.bad_lines.values()))
        batches = list(dataset)
        trained = np.concatenate([np.asarray(unit_ids) for batch in batches for unit_ids in batch.unit_ids])
        assert len(trained) == len(set(trained.tolist())) == summary.units
        assert sum(batch.tokens for batch in batches) == summary.tokens

        identities = [FileIdentity.of(file) for file in files]
        in_chunks = FilePass(identities, UnitRules(tokenizer, MIN_EMB_LEN), with_ids=False, chunk_bytes=chunk_bytes)
        counts = np.concatenate([chunk.counts for _, chunk in in_chunks.results("pass")])
        assert len(counts) == newlines
        assert set(np.flatnonzero(counts)) == set(trained.tolist())

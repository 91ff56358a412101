"""The one-time pass cut into chunks and spread over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from molgen_pretrain.data.chunk import UnitRules
from molgen_pretrain.data.file_pass import FilePass
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.index_pass import IndexPass
from molgen_pretrain.data.line_index import LineIndex
from molgen_pretrain.data.token_cache import TOKENS_FOLDER, TokenWriter
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import MAX_LINE_BYTES
from molgen_pretrain.errors import UserError

GOOD = b'{"canonical_smiles":"C","embedded_smiles":"[C]<0.1,0.2,%d>"}'
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def write_odd_files(folder: Path) -> list[Path]:
    """Every kind of line end and odd file; lines of 0 to some thousand bytes."""
    contents = [
        b"",
        b"\xef\xbb\xbf" + b"".join(GOOD % number + b"\r\n" for number in range(9)),
        b"\n\n" + GOOD % 1 + b"\n" + b'{"x": "' + b"y" * 3000 + b'"}\n\r\n{"\n' + GOOD % 2,
        b"",
        GOOD % 3,
        "\u2028\x85\x0b\x0c".encode().join([GOOD % 4] * 2) + b"\n\xff\n" + GOOD.replace(b"[C]", b"[C]\\u2028") % 5,
        b"\n".join(GOOD % number for number in range(60)) + b"\n",
    ]
    files = [folder / f"{number}.jsonl" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


def build(
    folder: Path, files: list[Path], tokenizer: UnitTokenizer, chunk_bytes: int | None, processes: int = 1
) -> dict[str, bytes]:
    """Every file that a pass with token ids leaves, by name."""
    (folder / TOKENS_FOLDER).mkdir(parents=True)
    identities = [FileIdentity.of(file) for file in files]
    tokens = TokenWriter(folder / TOKENS_FOLDER, tokenizer.size, None)
    file_pass = FilePass(
        identities, UnitRules(tokenizer, 8), with_ids=True, processes=processes, chunk_bytes=chunk_bytes
    )
    IndexPass(folder, identities, tokens, tokens_required=True, stop_at_bad_line=False).run(file_pass)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_the_same_for_any_chunks_and_processes(tmp_path: Path, tokenizer: UnitTokenizer) -> None:
    files = write_odd_files(tmp_path)
    expected = build(tmp_path / "whole", files, tokenizer, chunk_bytes=None)
    index = LineIndex(tmp_path / "whole")
    # Counted by the definition of a line: what ends at a newline, or at the end of the file.
    lines = [len([line for line in file.read_bytes().split(b"\n") if line]) for file in files]
    blank = 2  # and what is empty before its newline
    assert list(index.meta.lines_per_file) == [n + blank * (number == 2) for number, n in enumerate(lines)]
    for chunk_bytes, processes in ((1, 1), (7, 1), (64, 1), (1000, 1), (700, 2), (3000, 3)):
        found = build(tmp_path / f"{chunk_bytes}", files, tokenizer, chunk_bytes, processes)
        assert found == expected, f"chunks of {chunk_bytes} bytes, {processes} processes"


def test_a_line_over_the_limit_may_span_many_chunks(tmp_path: Path, tokenizer: UnitTokenizer) -> None:
    file = tmp_path / "long.jsonl"
    with file.open("wb") as out:
        out.write(GOOD % 1 + b"\n")
        out.truncate(3 * MAX_LINE_BYTES)
        out.seek(0, os.SEEK_END)
        out.write(b"\n" + GOOD % 2)
    build(tmp_path / "index", [file], tokenizer, chunk_bytes=MAX_LINE_BYTES // 2 + 1)
    meta = LineIndex(tmp_path / "index").meta
    assert (meta.lines, meta.bad_lines) == (3, {"too_long": 1})


@pytest.mark.parametrize("change", ["grow", "shrink", "remove"])
def test_a_file_that_changes_during_the_pass_is_named(change: str, tmp_path: Path, tokenizer: UnitTokenizer) -> None:
    file = tmp_path / "a.jsonl"
    content = b"".join(GOOD % number + b"\n" for number in range(100))
    file.write_bytes(content)
    file_pass = FilePass([FileIdentity.of(file)], UnitRules(tokenizer, 8), with_ids=False, chunk_bytes=1000)
    with closing(file_pass.results("pass")) as results:
        next(results)
        if change == "remove":
            file.unlink()
        else:
            file.write_bytes(content * 2 if change == "grow" else content[:3000])
        with pytest.raises(UserError, match=r"a\.jsonl"):
            list(results)


def test_a_user_error_of_a_process_arrives_as_one(tmp_path: Path, tokenizer: UnitTokenizer) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD % 1 + b"\n")
    identity = FileIdentity.of(file)
    file.unlink()
    file_pass = FilePass([identity] * 2, UnitRules(tokenizer, 8), with_ids=False, processes=2, chunk_bytes=30)
    with closing(file_pass.results("pass")) as results, pytest.raises(UserError) as caught:
        list(results)
    assert str(caught.value) == f"cannot read {file}: No such file or directory"


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@NEEDS_PROC
def test_signals_do_not_end_a_process_and_a_kill_is_a_clear_error(tmp_path: Path, tokenizer: UnitTokenizer) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(GOOD % number + b"\n" for number in range(2000)))
    before = set(children(os.getpid()))
    file_pass = FilePass(
        [FileIdentity.of(file)], UnitRules(tokenizer, 8), with_ids=False, processes=2, chunk_bytes=1000
    )
    with closing(file_pass.results("pass")) as results:
        next(results), next(results)
        workers = set(children(os.getpid())) - before
        assert len(workers) == 2
        for worker in workers:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(worker, number)
        for _ in range(10):
            next(results)
        os.kill(workers.pop(), signal.SIGKILL)
        with pytest.raises(UserError, match=r"ended by SIGKILL, most often because memory ran out"):
            list(results)
    assert not set(children(os.getpid())) - before


_PASS = """
import sys
from pathlib import Path
from molgen_pretrain.data.chunk import UnitRules
from molgen_pretrain.data.file_pass import FilePass
from molgen_pretrain.data.files import FileIdentity
from molgen_pretrain.data.tokenizer import UnitTokenizer
file, tokenizer = map(Path, sys.argv[1:])
rules = UnitRules(UnitTokenizer.load(tokenizer), 8)
results = FilePass([FileIdentity.of(file)], rules, with_ids=False, processes=2, chunk_bytes=1000).results("pass")
next(results), next(results)
print("working", flush=True)
sys.stdin.readline()
assert "torch" not in sys.modules
"""


@NEEDS_PROC
@pytest.mark.parametrize("how", ["killed", "ended"])
def test_no_process_outlives_the_one_that_started_it(how: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"".join(GOOD % number + b"\n" for number in range(2000)))
    command = [sys.executable, "-c", _PASS, str(file), str(tokenizer_folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        workers = children(process.pid)
        assert len(workers) == 2
        if how == "killed":
            process.kill()
        process.communicate("\n", timeout=30)
        assert process.returncode == (-9 if how == "killed" else 0)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a process of the pass is still there"
        time.sleep(0.05)


def test_the_first_bad_line_in_data_order_is_named(
    write_corpus: Callable[..., Path], tokenizer: UnitTokenizer, tmp_path: Path
) -> None:
    folder = write_corpus(400, files=2, replaced={170: b"[]", 171: b"{", 399: b""})
    identities = [FileIdentity.of(file) for file in sorted(folder.iterdir())]
    index_pass = IndexPass(tmp_path, identities, None, tokens_required=False, stop_at_bad_line=True)
    file_pass = FilePass(identities, UnitRules(tokenizer, 8), with_ids=False, processes=2, chunk_bytes=500)
    with pytest.raises(UserError, match=r"part-1\.jsonl:38: not_an_object"):
        index_pass.run(file_pass)

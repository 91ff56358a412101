"""The tokenizer tool, in process: what it writes, prints, proves and refuses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import parse_unit
from molgen_pretrain.tools import tokenizer as tokenizer_tool
from molgen_pretrain.vocabulary.compact import compact
from molgen_pretrain.vocabulary.compaction import read_compaction, token_text_map

BASE = str(SAMPLE_DIR / "tokenizer")
LINES = (SAMPLE_DIR / "train" / "train_0.jsonl").read_bytes().splitlines(keepends=True)[:300]
UNITS = [parse_unit(line, 0) for line in LINES]
ODD = '[Xe] "naïve" 日本\n\t'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    """300 lines in a plain and a compressed file, and a bad one."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"".join([*LINES[:200], b"nonsense\n"]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(LINES[200:])))
    return str(folder)


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str, code: int = 0) -> str:
        assert tokenizer_tool.main(arguments) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


def test_inspect_tells_sizes_and_what_data_use(tool: Callable[..., str], data: str) -> None:
    output = tool("inspect", BASE, "--data", data, "--processes", "1")
    values = {line[:24].strip(): line[24:] for line in output.splitlines() if line.startswith("  ")}
    ids = UnitTokenizer.load(BASE).encode_batch(UNITS)
    tokens, in_use = sum(map(len, ids)), len({token for unit in ids for token in unit})
    assert values["embedding rows"].startswith("384 ")
    assert values["pad token"] == "<|endoftext|> 0"
    assert values["tags"] == "[SMILES] 350, [/SMILES] 351, [CONFORMER] 352, [/CONFORMER] 353"
    assert values["units"] == "300"
    assert values["lines without one"] == "1 invalid_json"
    assert values["tokens"].startswith(f"{tokens:,} ")  # of the data; the tokenizer's own stand further up
    assert values["characters per token"] == f"{sum(map(len, UNITS)) / tokens:.3f}"
    assert values["ids in use"].startswith(f"{in_use} of 354 ")


def test_compact_is_an_ordinary_tokenizer_with_the_same_cuts(
    tool: Callable[..., str], data: str, tmp_path: Path
) -> None:
    out = tmp_path / "compact"
    output = tool("compact", BASE, "--data", data, "--out", str(out), "--multiple-of", "100", "--processes", "2")
    record = read_compaction(out)
    assert record is not None
    base, small = UnitTokenizer.load(BASE), UnitTokenizer.load(out)
    ids = base.encode_batch(UNITS)
    assert [[record.kept_ids[token] for token in unit] for unit in small.encode_batch(UNITS)] == ids
    assert (record.proved_units, record.proved_tokens) == (300, sum(map(len, ids)))
    assert f"all 300 units encoded again with both: {record.proved_tokens:,} tokens" in output
    assert (record.base_size, record.padded_rows) == (354, 400)
    assert list(record.kept_ids) == token_text_map(BASE, out)
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    assert (len(loaded), loaded.pad_token_id) == (small.size, small.pad_id)
    for text in (UNITS[0], ODD):
        assert loaded(text, add_special_tokens=False)["input_ids"] == small.encode_batch([text])[0]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert "of a tokenizer with 354 tokens" in tool("inspect", str(out))
    for command in (("extend", "--tokens", "[NEW]"), ("compact", "--data", data)):
        message = tool(command[0], str(out), *command[1:], "--out", str(tmp_path / "again"), code=1)
        assert "is compact already" in message


def test_a_segmentation_that_differs_is_found_and_nothing_is_left(
    tool: Callable[..., str], data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_merge(base: Tokenizer, ids: set[int]) -> tuple[Tokenizer, list[int]]:
        small, kept = compact(base, ids)
        content = json.loads(small.to_str())
        content["model"]["merges"].remove([",", "-"])
        return Tokenizer.from_str(json.dumps(content)), kept

    monkeypatch.setattr(tokenizer_tool, "compact", without_a_merge)
    message = tool("compact", BASE, "--data", data, "--out", str(tmp_path / "compact"), "--processes", "1", code=1)
    assert "the base has [',-'," in message
    assert "compact one [',', '-'," in message
    assert "in the unit [SMILES]" in message
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("data", "cache")] == []


def test_extend_writes_a_tokenizer_that_loads(tool: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "more"
    assert "[NEW] 354, [/NEW] 355" in tool("extend", BASE, "--tokens", "[NEW]", "[/NEW]", "--out", str(out))
    more, base = UnitTokenizer.load(out), UnitTokenizer.load(BASE)
    assert more.encode_batch(["C[NEW]C"]) == [[*base.encode_batch(["C"])[0], 354, *base.encode_batch(["C"])[0]]]
    assert more.encode_batch(UNITS) == base.encode_batch(UNITS)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("inspect", "nowhere"), "tokenizer=nowhere: no such folder"),
        (("extend", BASE, "--tokens", "[NEW]", "--out", "."), "--out=.: exists already"),
        (("extend", "nowhere", "--tokens", "[NEW]", "--out", "new"), "base=nowhere: no tokenizer.json"),
        (("compact", BASE, "--data", "nowhere", "--out", "new"), "--data=nowhere: no such file or folder"),
        (("compact", BASE, "--data", BASE, "--out", "new"), "no *.jsonl file in this folder"),
        (("compact", BASE, "--data", "x", "--out", "new", "--multiple-of", "0"), "--multiple-of=0: must be at least"),
        (("inspect", BASE, "--data", "x", "--processes", "0"), "--processes=0: must be at least 1"),
    ],
)
def test_mistakes(
    tool: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rule in tool(*arguments, code=1)
    assert not (tmp_path / "new").exists()


def test_data_without_a_usable_line(tool: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"nonsense\n")
    out = str(tmp_path / "new")
    assert "no usable line" in tool("compact", BASE, "--data", str(tmp_path / "bad.jsonl"), "--out", out, code=1)
    assert not any("new" in path.name for path in tmp_path.iterdir())

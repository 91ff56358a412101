"""The data tool, in process: its figures against the dataset's own batches, what it prints, writes and refuses."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from matplotlib.image import imread

from molgen_pretrain.config.schema import SAMPLE_DIR
from molgen_pretrain.data.batch import IGNORED_LABEL
from molgen_pretrain.data.dataset import JsonlTaggedPackedDataset
from molgen_pretrain.data.tokenizer import UnitTokenizer
from molgen_pretrain.data.units import parse_unit
from molgen_pretrain.tools.data import main

GOOD = (SAMPLE_DIR / "train" / "train_0.jsonl").read_bytes().splitlines(keepends=True)[:150]
BAD = [b"\n", b"[1]\n", b'{"canonical_smiles": 3, "embedded_smiles": ""}\n', b"nonsense\n"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 100 and 54 lines, 4 of them bad: lines 11 to 14 of b.jsonl."""
    folder = tmp_path_factory.mktemp("data") / "mine"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"".join(GOOD[:100]))
    (folder / "b.jsonl").write_bytes(b"".join([*GOOD[100:110], *BAD, *GOOD[110:]]))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLGEN_CACHE", str(cache))
    for name in ("RUN_NAME", "WANDB_RUN_NAME", "WORLD_SIZE", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tokenizer() -> UnitTokenizer:
    return UnitTokenizer.load(SAMPLE_DIR / "tokenizer")


@pytest.fixture
def tool(capsys):
    def run(*arguments: str, code: int = 0) -> str:
        assert main(arguments) == code
        out, err = capsys.readouterr()
        return err if code else out

    return run


@pytest.fixture
def stats(tool, tmp_path: Path):
    """What `stats` writes as JSON."""

    def run(*arguments: str) -> dict:
        tool("stats", *arguments, "--json", "stats.json")
        return json.loads((tmp_path / "stats.json").read_text())

    return run


@pytest.fixture
def dataset(cache: Path, tokenizer: UnitTokenizer):
    """The data as a run with these settings trains on them."""

    def make(path: Path, seq_len: int, **options: object) -> JsonlTaggedPackedDataset:
        defaults = {"local_batch_size": 1, "seed": 42, "infinite": False}
        return JsonlTaggedPackedDataset(
            paths=path, tokenizer=tokenizer, seq_len=seq_len, cache_dir=cache, **{**defaults, **options}
        )

    return make


def table_row(output: str, *start: str) -> list[str]:
    rows = [line.split() for line in output.splitlines()]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


def test_lines_tokens_and_bad_lines(tool, stats, data: Path, tokenizer: UnitTokenizer) -> None:
    found = stats(str(data))["together"]
    units = [parse_unit(line, 16) for line in GOOD]
    counts = tokenizer.count_tokens([unit for unit in units if isinstance(unit, str)])
    assert (found["files"], found["lines"], found["lengths"]["units"]) == (2, 154, 150)
    assert found["size_bytes"] == sum(map(len, GOOD + BAD))
    assert {int(length): count for length, count in found["units_of_length"].items()} == Counter(counts)
    assert found["lengths"]["tokens"] == sum(counts)
    assert found["bad_lines"] == {"blank": 1, "invalid_json": 1, "not_an_object": 1, "wrong_type": 1}
    assert found["first_bad_lines"][0] == f"{data}/b.jsonl:11 blank"
    output = tool("stats", str(data))
    assert table_row(output, "2")[-3:] == ["154", "4", "150"]
    assert table_row(output, "wrong_type")[1:3] == ["1", "0.6%"]
    assert f"{data}/b.jsonl:14 invalid_json" in output


@pytest.mark.parametrize("seq_len", [400, 1024])
@pytest.mark.parametrize("overflow", ["truncate", "drop"])
def test_packing_is_that_of_the_batches(stats, dataset, data: Path, seq_len: int, overflow: str) -> None:
    (packing,) = stats(str(data), f"seq_len={seq_len}", "batch=8", f"data.overflow={overflow}")["together"]["packing"]
    batches = list(dataset(data, seq_len, overflow=overflow))
    tokens = sum(batch.tokens for batch in batches)
    assert packing["sequences"] == len(batches)
    assert packing["tokens"] == tokens
    assert packing["fill"] == pytest.approx(tokens / (len(batches) * seq_len))
    assert packing["truncated_units"] == sum(batch.truncated for batch in batches)
    assert packing["dropped_units"] == sum(batch.dropped for batch in batches)
    assert packing["units"] == sum(len(batch.unit_ids[0]) for batch in batches)
    assert (packing["dropped_units"] > 0) == (seq_len == 400 and overflow == "drop")
    assert packing["steps_per_epoch"] == {"8": len(batches) / 8}
    assert not packing["is_estimate"]


def test_long_epochs_are_measured_in_parts(tool, stats, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = stats(str(data), "seq_len=4096")["together"]["packing"][0]["sequences"]
    monkeypatch.setattr("molgen_pretrain.data.plan.BLOCK_LINES", 8)
    estimate = stats(str(data))["together"]["packing"][0]
    assert estimate["is_estimate"]
    assert estimate["tokens"] == stats(str(data))["together"]["packing"][0]["tokens"]
    assert estimate["sequences"] * 1024 * estimate["fill"] == pytest.approx(estimate["tokens"], rel=0.01)
    assert exact < estimate["sequences"]
    output = tool("stats", str(data))
    assert f"~{estimate['sequences']}" in output
    assert "~: measured on whole blocks" in output


def test_the_run_of_the_overrides(tool) -> None:
    output = tool("stats", "training.steps=100", "training.global_batch_size=16", "training.seq_len=2048")
    assert "training data: " in output
    assert "100 of 16 x 2,048 tokens: 1,600 sequences" in output
    assert "steps of 16" in output
    assert "validation data: " in tool("stats", "--valid")


def test_a_mixture(tool, stats, data: Path) -> None:
    sources = f"data.sources=[{{path: {data}/a.jsonl, weight: 3}}, {{path: {data}/b.jsonl, weight: 1, name: '[red]x'}}]"
    found = stats(sources)
    assert [(source["name"], source["share"], source["lines"]) for source in found["sources"]] == [
        ("a", 0.75, 100),
        ("[red]x", 0.25, 54),
    ]
    parts = [source["packing"][0] for source in found["sources"]]
    together = found["together"]["packing"][0]
    for key in ("sequences", "tokens", "units"):
        assert together[key] == sum(part[key] for part in parts)
    assert together["fill"] == pytest.approx(together["tokens"] / (together["sequences"] * 1024))
    output = tool("stats", sources, "training.steps=100")
    assert table_row(output, "[red]x", "25.0%")[2:] == ["100", f"{100 / parts[1]['sequences']:.2f}"]


@pytest.mark.parametrize("many_long", [False, True])
def test_the_picture(tool, data: Path, tmp_path: Path, many_long: bool) -> None:
    long = json.dumps({"canonical_smiles": "C", "embedded_smiles": "[C]<1.0000,2.0000,3.0000>" * 500}).encode()
    (tmp_path / "long.jsonl").write_bytes(b"".join(GOOD[:50]) + (long if many_long else b""))
    output = tool("stats", "long.jsonl", "seq_len=512,1024", "--png", "lengths.png")
    assert "written: lengths.png" in output
    picture = imread(tmp_path / "lengths.png")
    assert picture.shape[:2] == (700, 1200)
    assert len(set(map(tuple, picture.reshape(-1, picture.shape[2])[::7]))) > 10  # something is drawn


def test_preview_shows_the_batches(tool, dataset, data: Path, tokenizer: UnitTokenizer) -> None:
    output = tool("preview", str(data), "-n", "3")
    batches = [batch for batch, _ in zip(dataset(data, 1024), range(3), strict=False)]
    for batch in batches:
        assert f"{batch.tokens:,} of 1,024 positions filled" in output
        for place in dataset(data, 1024).locate(batch.unit_ids[0]):
            file, _, line = place.rpartition(":")
            unit = parse_unit(Path(file).read_bytes().splitlines()[int(line) - 1], 16)
            assert f": {place}, " in output
            assert f"\n{unit}{tokenizer.pad_token}" in output
    assert output.count("── unit ") == sum(len(batch.unit_ids[0]) for batch in batches)


@pytest.mark.parametrize("document_mask", ["false", "true"])
def test_preview_of_tokens(tool, dataset, data: Path, tokenizer: UnitTokenizer, document_mask: str) -> None:
    output = tool("preview", str(data), "-n", "1", "--tokens", f"data.document_mask={document_mask}")
    rows = [line.split() for line in output.splitlines() if line[:1].isdigit()]
    batch = next(iter(dataset(data, 1024, document_mask=document_mask == "true")))
    assert [int(row[1]) for row in rows] == batch.input_ids[0].tolist()
    labels = [IGNORED_LABEL if row[3] == "ignored" else int(row[3]) for row in rows]
    assert labels == batch.labels[0].tolist()
    assert [row[2] for row in rows] == [repr(tokenizer.decode([token])) for token in batch.input_ids[0].tolist()]
    if batch.position_ids is not None:
        assert [int(row[-1]) for row in rows] == batch.position_ids[0].tolist()
        assert output.count("(label ignored)") == len(batch.unit_ids[0])


def test_preview_from_a_later_sequence(tool, data: Path) -> None:
    first_six = tool("preview", str(data), "-n", "6")
    later = tool("preview", str(data), "-n", "2", "--sequence", "4")
    assert first_six.endswith(later)
    assert later.startswith("sequence 4 of epoch 0: ")
    assert later not in tool("preview", str(data), "-n", "2", "--sequence", "4", "--epoch", "1")


def test_preview_goes_on_into_the_next_epoch(tool, stats, data: Path) -> None:
    last = stats(str(data))["together"]["packing"][0]["sequences"] - 1
    output = tool("preview", str(data), "--sequence", str(last))
    assert f"sequence {last} of epoch 0" in output
    assert output.endswith(tool("preview", str(data), "--epoch", "1", "-n", "1"))
    error = tool("preview", str(data), "--sequence", str(last + 5), code=1)
    assert f"error: --sequence={last + 5}: epoch 0 has {last + 1} sequences" in error


def test_preview_of_a_mixture(tool, data: Path) -> None:
    sources = f"data.sources=[{{path: {data}/a.jsonl, weight: 2}}, {{path: {data}/b.jsonl, weight: 1}}]"
    whole = tool("preview", sources, "-n", "90")  # more than an epoch of either
    assert whole.endswith(tool("preview", sources, "--sequence", "80", "-n", "10"))
    assert whole.count("a.jsonl:") > whole.count("b.jsonl:") > 0
    assert "error: --epoch=1: a mixture has no epochs" in tool("preview", sources, "--epoch", "1", code=1)


def test_build_makes_what_is_missing(tool, data: Path, tmp_path: Path) -> None:
    place = f"paths.cache={tmp_path}/cache"
    lengths = tool("build", str(data), place, "cache=lengths")
    assert "mode: data.cache=lengths\n" in lengths
    assert "built: lengths " in lengths
    assert "4 of 154 lines are bad and skipped" in lengths
    for _ in range(2):
        assert "stands already: lengths " in tool("build", str(data), place, "cache=lengths")
    tokens = tool("build", str(data), place, "processes=1")
    assert "built: lengths " in tokens
    assert "as uint16" in tokens
    assert "mode: tokens, since their ids fit (data.cache=auto, data.cache_budget_gib=256)" in tokens
    again = tool("build", str(data), place)
    assert "stands already: " in again
    assert "built" not in again
    none = tool("build", str(data), f"paths.cache={tmp_path}/other", "data.cache_budget_gib=0.00001")
    assert "mode: lengths, since token ids would take" in none


def test_build_of_a_compressed_file(tool, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(GOOD[:20])))
    output = tool("build", "c.jsonl.gz", f"paths.cache={tmp_path}/cache")
    assert f"unpacked files {sum(map(len, GOOD[:20])) / 1000:.1f} kB" in output
    assert "c.jsonl.gz:" in tool("preview", "c.jsonl.gz", f"paths.cache={tmp_path}/cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stats", "nowhere"), "path=nowhere: no such file or folder"),
        (("stats", "tokenizer=nowhere"), "data.tokenizer=nowhere: no such folder"),
        (("stats", "seq_len=1"), "seq_len=1: must be integers from 2 up"),
        (("stats", "seq_len=2048,x"), "seq_len=2048,x: must be integers from 2 up"),
        (("stats", "batch=[]"), "batch=[]: must be integers from 1 up"),
        (("stats", "data.stepz=3"), "data.stepz: unknown key"),
        (("stats", "cache=some"), "data.cache=some: "),
        (("stats", "--json", "nowhere/s.json"), "nowhere/s.json: cannot be written"),
        (("stats", ".", "--valid"), "--valid: "),
        (("stats", "--valid", "data.valid_path=null", "validation.enable=false"), "data.valid_path=null: "),
        (("stats", "--world-size", "2"), "use parallelism=fsdp"),
        (("preview", "batch=4"), "batch=4: preview has no use for it"),
        (("preview", "seq_len=512,1024"), "seq_len=512,1024: preview has no use for it; give one"),
        (("preview", "-n", "0"), "-n=0: must be at least 1"),
        (("preview", "--epoch", "-1"), "--epoch=-1: must be at least 0"),
        (("build", "seq_len=512"), "seq_len=512: build has no use for it"),
    ],
)
def test_mistakes(tool, arguments: tuple[str, ...], message: str) -> None:
    error = tool(*arguments, code=1)
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error


def test_a_bad_line_stops_where_the_run_would(tool, data: Path) -> None:
    error = tool("stats", str(data), "data.on_bad_line=error", code=1)
    assert f"error: data.on_bad_line=error: {data}/b.jsonl:11: blank" in error


def test_stats_and_build_load_no_torch() -> None:
    code = (
        "import sys, molgen_pretrain.tools.data as tool; tool.main(['stats', '--valid']); tool.main(['build']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

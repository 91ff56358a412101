"""The report of a sweep or of any runs, made from run directories in every state."""

from __future__ import annotations

import json
import math
import re
import runpy
import struct
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from molgen_pretrain.sweep.report import picture
from molgen_pretrain.sweep.report.collect import collect
from molgen_pretrain.sweep.report.curves import close_up, keep_extremes
from molgen_pretrain.sweep.report.make import make_report
from molgen_pretrain.sweep.report.palette import DARK, LIGHT, look
from molgen_pretrain.sweep.report.records import Report, Status
from molgen_pretrain.sweep.report.run import Cost
from molgen_pretrain.sweep.report.settings import differing_settings
from molgen_pretrain.sweep.report.table import Column, point_table
from molgen_pretrain.sweep.report.tree import tree_text
from molgen_pretrain.tools.report import main

samples = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "report_samples.py")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four points that share trunks, with a milestone at half time."""
    return samples.write_trunk_sweep(tmp_path_factory.mktemp("finished") / "sweep", milestones=(500,))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A point of each state."""
    return samples.write_trunk_sweep(
        tmp_path_factory.mktemp("mixed") / "sweep",
        (0.1, 0.2, 0.4, 0.5),
        endings={
            0.1: ("failed", 930, "train loss | not finite <b>"),
            0.2: ("running", 870, None),
            0.4: ("", 0, None),
        },
    )


def column(report: Report, title: str) -> Column:
    found = [c for c in point_table(report).columns if c.section + c.title == title]
    assert len(found) == 1, [c.section + c.title for c in point_table(report).columns]
    return found[0]


def texts(report: Report, title: str) -> list[str]:
    return [cell.text for cell in column(report, title).cells]


def expected_cost(lines: list[dict], start: int, end: int) -> Cost:
    """What the rows of steps start + 1 to end say, added up one by one."""
    ours = [row for row in lines if start < row["step"] <= end]
    validations = sum(row["kind"] == "validation" for row in ours)
    seconds = (end - start) * samples.STEP_SECONDS + validations * samples.VALIDATION_SECONDS
    seconds += (len(ours) - validations) * samples.STALL_SECONDS
    return Cost(end - start, (end - start) * samples.TOKENS_PER_STEP, seconds)


def test_each_part_is_counted_once_and_the_sum_is_what_was_spent(finished: Path) -> None:
    report = collect([finished])
    total = Cost()
    for edge in report.edges:
        assert edge.end is not None
        expected = expected_cost(rows_of(edge.run.directory.metrics), edge.start, edge.end)
        assert edge.cost.steps == expected.steps
        assert edge.cost.tokens == pytest.approx(expected.tokens)
        assert edge.cost.seconds == pytest.approx(expected.seconds)
        total += expected
    assert report.spent.steps == total.steps == report.planned_steps == 2850
    assert report.spent.seconds == pytest.approx(total.seconds)
    assert report.saving == pytest.approx(1 - 2850 / 4000)
    own = sum(int(text.replace(",", "")) for text in texts(report, "own steps"))
    assert column(report, "own steps").foot == (f"{2850 - own:,}", "2,850")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_point_would_have_taken_alone_is_its_whole_run(finished: Path) -> None:
    report = collect([finished])
    lines = rows_of(finished / "decay_frac=0.2" / "metrics.jsonl")
    (point,) = [point for point in report.points if point.name == "decay_frac=0.2"]
    assert point.run.cost(0).seconds == pytest.approx(expected_cost(lines, 0, 1000).seconds)


def test_a_run_that_began_at_anothers_checkpoint_is_charged_for_its_own_steps(tmp_path: Path) -> None:
    lines = [row for row in samples.rows(0.1, (1000,), 1000) if row["step"] > 500]
    report = collect([samples.write_run(tmp_path / "run", lines, config=samples.config_of(0.1, 1000))])
    expected = expected_cost(lines, 500, 1000)
    assert report.spent.steps == report.planned_steps == 500
    assert report.spent.tokens == pytest.approx(expected.tokens)
    assert report.spent.seconds == pytest.approx(expected.seconds)


def test_losses_are_those_of_the_rows_and_the_lowest_is_marked(finished: Path) -> None:
    report = collect([finished])
    found = {}
    for point in report.points:
        rows = {(row["kind"], row["step"]): row["loss"] for row in rows_of(finished / point.name / "metrics.jsonl")}
        found[point.name] = rows
        i = report.points.index(point)
        assert texts(report, "train loss")[i] == f"{rows['train', 1000]:.4f}"
        assert texts(report, "validation loss")[i] == f"{rows['validation', 1000]:.4f}"
        assert texts(report, "validation at step 500")[i] == f"{rows['validation', 500]:.4f}"
        beside = column(report, "validation at step 500").cells[i].beside
        assert beside == f"train {rows['train', 500]:.4f}"
    for title, step in (("validation loss", 1000), ("validation at step 500", 500)):
        best = [
            point.name for point, cell in zip(report.points, column(report, title).cells, strict=True) if cell.is_best
        ]
        assert best == [min(found, key=lambda name: found[name]["validation", step])]


def test_states_and_what_they_mean(mixed: Path) -> None:
    report = collect([mixed])
    assert [point.status for point in report.points] == [
        Status.FAILED,
        Status.RUNNING,
        Status.NOT_STARTED,
        Status.FINISHED,
    ]
    assert all(edge.status is Status.FINISHED for sweep in report.sweeps for edge in sweep.trunk)
    assert texts(report, "step") == ["930 / 1,000", "870 / 1,000", "600 / 1,000", "1,000"]
    # A loss that is not final is no candidate: the failed run's lies below the finished one's.
    assert not any(cell.is_best for cell in column(report, "validation loss").cells)
    assert "last row at" in column(report, "status").cells[1].beside


def test_a_point_behind_a_failed_trunk_says_what_it_waits_for(tmp_path: Path) -> None:
    root = samples.write_trunk_sweep(tmp_path / "s", (0.1, 0.4), endings={0.1: ("", 0, None), 0.4: ("", 0, None)})
    samples.write_run(root / "trunk" / "steps-0-600", [], status="failed", error="disk full")
    report = collect([root])
    assert [point.detail for point in report.points] == ["waits for steps-0-600 (failed)"] * 2
    assert "disk full" in make_report([root]).markdown.read_text()


def test_only_settings_that_differ_are_shown_and_followers_are_not(tmp_path: Path) -> None:
    runs = []
    for i, (lr, scheduler) in enumerate(((1e-4, {}), (2e-4, {}), (2e-4, {"decay_shape": "cosine"}))):
        config = samples.config_of(0.1, 100)
        config["optimizer"]["lr"] = config["scheduler"]["lr_max"] = lr
        config["scheduler"] |= scheduler
        typed = [f"optimizer.lr={lr}", "run_name=x", *(["scheduler=wsds"] if scheduler else [])]
        runs.append(samples.write_run(tmp_path / f"run{i}", [], config=config, overrides=typed))
    assert differing_settings(collect(runs).points) == {
        "optimizer.lr": [1e-4, 2e-4, 2e-4],
        "scheduler": ["", "", "wsds"],  # chosen once; its decay_shape is nothing that the others have another of
    }


def test_a_point_that_has_not_started_shows_what_was_typed(mixed: Path) -> None:
    assert texts(collect([mixed]), "scheduler.decay_frac") == ["0.1", "0.2", "0.4", "0.5"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no run.json": lambda run: (run / "run.json").unlink(),
    "torn run.json": lambda run: (run / "run.json").write_text('{"status": "runn'),
    "run.json of another kind": lambda run: (run / "run.json").write_text("[1, 2]"),
    "no metrics.jsonl": lambda run: (run / "metrics.jsonl").unlink(),
    "no rows": lambda run: (run / "metrics.jsonl").write_text(""),
    "torn row": lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-9]),
    "rows of another kind": lambda run: (run / "metrics.jsonl").write_text('[]\n{"kind": "train"}\n{"step": "x"}\n'),
    "one row": lambda run: (run / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "loss": 3.0}\n'),
    "NaN losses": lambda run: (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"kind": "train", "step": s, "loss": "NaN", "lr": 1e-4}) + "\n" for s in (1, 2, 3))
    ),
    "no config.yaml": lambda run: (run / "config.yaml").unlink(),
    "torn config.yaml": lambda run: (run / "config.yaml").write_text("training: {steps: [1"),
    "a log alone": lambda run: [path.unlink() for path in run.iterdir() if path.name != "runtime.log"],
}


def test_damaged_runs_are_reported(tmp_path: Path) -> None:
    lines = list(samples.rows(0.1, (200,), 150))
    for name, damage in DAMAGES.items():
        run = samples.write_run(tmp_path / name, lines, status="running", config=samples.config_of(0.1, 200))
        (run / "runtime.log").write_text("began\n")
        damage(run)
    files = make_report(sorted(tmp_path.iterdir()), tmp_path)
    for text in (files.markdown.read_text(), table_text(files.html)):
        assert all(name in text for name in DAMAGES)
    said = files.markdown.read_text()
    for problem in ("run.json cannot be read", "no run.json", "config.yaml cannot be read", "not finite at 3 logged"):
        assert problem in said
    notes = {
        point.name: point.run.notes for point in collect(sorted(p for p in tmp_path.iterdir() if p.is_dir())).points
    }
    assert notes["torn row"] == ()  # a run that is being written looks like this


def table_text(page: Path) -> str:
    """The text of the page's body outside scripts, as a browser reads it."""

    class Reader(HTMLParser):
        inside, found, scripts = "", "", 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.inside = tag
            Reader.scripts += tag == "script"

        def handle_data(self, data: str) -> None:
            if self.inside not in ("script", "style"):
                Reader.found += data

    Reader().feed(page.read_text())
    assert Reader.scripts == 3, "data, plotly, ours"
    return Reader.found


def test_names_and_messages_may_hold_anything(tmp_path: Path) -> None:
    name, error = "lr=<script>alert(1)<!--&\"'`|*_x_", "</script><img src=x onerror=alert(1)> | \n# `two` lines"
    run = samples.write_run(tmp_path / name, [], status="failed", error=error, config=samples.config_of(0.1, 10))
    files = make_report([run])
    page = table_text(files.html)
    assert name in page
    assert "</script><img src=x onerror=alert(1)>" in page
    table = [line for line in files.markdown.read_text().splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert not re.search(r"(?<!\\)<", files.markdown.read_text())


def test_the_tree_of_three_levels(finished: Path) -> None:
    (sweep,) = collect([finished]).sweeps
    lines = [re.sub(r"  +", "  ", line) for line in tree_text(sweep)]
    assert lines[:3] == [
        "steps-0-300  0 to 300  finished  300 steps  0:02:47  shared by 4",
        "├─ decay_frac=0.4  300 to 1,000  finished  700 steps  0:06:29",
        "└─ steps-300-400  300 to 400  finished  100 steps  0:00:56  shared by 3",
    ]
    assert [line.lstrip() for line in lines[-2:]] == [
        "├─ decay_frac=0.1  450 to 1,000  finished  550 steps  0:05:07",
        "└─ decay_frac=0.05  450 to 1,000  finished  550 steps  0:05:07",
    ]


def test_reports_made_at_once_are_whole_and_leave_nothing_behind(mixed: Path) -> None:
    threads = [threading.Thread(target=make_report, args=([mixed],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mixed / "report.html").read_text().rstrip().endswith("</html>")
    assert struct.unpack(">II", (mixed / "report.png").read_bytes()[16:24]) == (1500, 950)
    assert not [path for path in mixed.iterdir() if path.name.endswith(".tmp")]


def test_a_run_that_ends_while_the_report_is_written_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = samples.write_run(tmp_path / "run", [], status="running", config=samples.config_of(0.1, 10))
    draw = picture.draw_report

    def end_and_draw(*arguments: object) -> None:
        samples.write_run(run, [], status="failed", error="it ended")
        draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(picture, "draw_report", end_and_draw)
    assert "it ended" in make_report([run]).markdown.read_text()


@given(
    arrays(float, st.integers(0, 400), elements=st.floats(-1e6, 1e6) | st.just(math.nan)),
    st.integers(5, 60),
)
def test_what_is_drawn_keeps_ends_peaks_and_gaps(values: np.ndarray, limit: int) -> None:
    places = keep_extremes(values, limit)
    assert len(places) <= max(limit, 0)
    assert (np.diff(places) > 0).all()
    if len(values):
        assert {0, len(values) - 1} <= set(places)
        assert np.isnan(values[places]).any() == np.isnan(values).any()
    if np.isfinite(values).any():
        assert np.nanmin(values[places]) == np.nanmin(values)
        assert np.nanmax(values[places]) == np.nanmax(values)


def test_close_up_leaves_the_first_fall_out(finished: Path) -> None:
    report = collect([finished])
    losses = report.points[0].run.train
    curve = SimpleNamespace(steps=losses.steps, values=losses.loss)
    found = close_up([curve])  # type: ignore[list-item]
    assert found is not None
    low, high = found
    late = losses.loss[losses.steps >= 100]
    assert low < late.min() < late.max() < high < losses.loss.max()
    flat = SimpleNamespace(steps=losses.steps, values=np.linspace(3, 2, len(losses.steps)))
    assert close_up([flat]) is None  # type: ignore[list-item]


# Machado, Oliveira and Fernandes 2009 (doi:10.1109/TVCG.2009.113), severity 1: linear RGB as seen without one cone.
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stay_apart_whatever_the_eyes(palette: tuple[str, ...], sight: str) -> None:
    def lab(colour: str) -> np.ndarray:
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.asarray(SIGHT[sight]) @ linear, 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        xyz = to_xyz @ seen / (0.9505, 1.0, 1.089)
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    # 2.3 is what one can just tell apart side by side (CIE 1976); thin lines need much more.
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(palette, 2)) > 12


def test_looks_repeat_only_after_all_colours_and_dashes() -> None:
    assert len({look(i) for i in range(32)}) == 32
    assert [dash for _, dash in map(look, range(9))] == [0] * 8 + [1]


def test_the_tool_writes_into_the_sweep_and_names_the_files(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished)]) == 0
    written = [Path(line.partition("written: ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert written == [finished / f"report.{suffix}" for suffix in ("html", "md", "png")]
    assert all(path.stat().st_size > 1000 for path in written)


def test_several_folders_by_pattern(finished: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert main([str(finished / "decay*"), str(mixed), "--out", str(out)]) == 0
    said = (out / "report.md").read_text()
    assert "5 of 8" in said  # four finished runs, and the sweep's one
    names = set(re.findall(r"^\| ((?:\S+ runs/|\S+/)?decay_frac=[\d.]+) \|", said, re.MULTILINE))
    both = {f"{of}/decay_frac={frac}" for of in ("4 runs", "decay_frac-3f2a91bc") for frac in (0.1, 0.2, 0.4)}
    assert names == both | {"decay_frac=0.05", "decay_frac=0.5"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: neither a sweep"),
        (["a", "b"], "give --out"),
        (["torn"], "sweep.json: damaged"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "torn", "a", "b"):
        Path(name).mkdir()
    Path("torn/sweep.json").write_text('{"name": "x"')
    assert main(words) == 1
    assert message in capsys.readouterr().err

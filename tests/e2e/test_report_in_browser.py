"""The report in a real browser, without a network: what is drawn, and what its switches do."""

from __future__ import annotations

import html
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from molgen_pretrain.sweep.report.make import make_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

samples = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "report_samples.py")))

# A user at work: clicks, and after each click what is on the screen. Lines are counted as Plotly draws them.
USER = """
<script>
addEventListener("load", async () => {
  const plot = document.getElementById("curves");
  const one = (selector) => document.querySelector(selector);
  const look = () => ({
    lines: plot.querySelectorAll(".scatterlayer .js-line").length,
    panels: plot.querySelectorAll(".cartesianlayer .subplot").length,
    axis: plot.querySelector(".xtitle").textContent,
    ticks: [...plot.querySelectorAll(".ytick text")].map((tick) => tick.textContent),
    path: plot.querySelector(".scatterlayer .js-line").getAttribute("d"),
    last: plot.data[0].x[plot.data[0].x.length - 1],
    range: plot.layout.yaxis.range.slice(),
    order: [...document.querySelectorAll("tbody tr")].map((row) => row.cells[0].textContent),
  });
  const after = async (act) => {
    act();
    await new Promise((resolve) => setTimeout(resolve, 200));
    return look();
  };
  const click = (selector) => after(() => one(selector).click());
  const loss = [...document.querySelectorAll("th button")].find((head) => head.textContent === "validation loss");
  const seen = {
    begin: await after(() => {}),
    tokens: await click("[data-value=tokens]"),
    steps: await click("[data-value=steps]"),
    raw: await click("[data-value=raw]"),
    whole: await click("[data-value=all]"),
    log: await click("[data-value=log]"),
    hidden: await click("[data-point='1']"),
    shown: await click("[data-point='1']"),
    alone: await after(() => one("[data-point='2']").dispatchEvent(new MouseEvent("dblclick"))),
    sorted: await after(() => loss.click()),
    reversed: await after(() => loss.click()),
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    swatches: [...document.querySelectorAll(".legend .swatch line")].map((line) => getComputedStyle(line).stroke),
    lanes: [...document.querySelectorAll(".tree .edge")].map((lane) => lane.getBoundingClientRect().toJSON()),
  };
  const note = document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify(seen);
  document.body.append(note);
});
</script>
"""


def open_page(page: Path, profile: Path) -> tuple[dict, str]:
    """What the user saw, and what the browser has to say about it."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--window-size=1400,2000", "--virtual-time-budget=6000"]
    command += ["--enable-logging=stderr", "--dump-dom", page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="seen">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert found, f"the page did not get to its end:\n{ended.stderr}"
    return json.loads(html.unescape(found.group(1))), ended.stderr


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """A visit to the report of a sweep with a name that is trouble, a failed, a running and a finished point."""
    folder = tmp_path_factory.mktemp("browser")
    endings = {0.1: ("failed", 930, "</script><script>alert(1)</script>"), 0.2: ("running", 870, None)}
    root = samples.write_trunk_sweep(
        folder / "sweep", (0.1, 0.2, 0.4), endings=endings, name='<b>bold</b> & "quoted"</script>'
    )
    page = folder / "copy.html"
    page.write_text(make_report([root]).html.read_text().replace("</body>", f"{USER}</body>"))
    return open_page(page, folder / "profile")


def test_no_script_error_and_no_request(visit: tuple[dict, str]) -> None:
    seen, said = visit
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    assert seen["requests"] == []


def test_every_point_is_drawn_in_every_panel_in_its_own_colour(visit: tuple[dict, str]) -> None:
    seen, _ = visit
    assert seen["begin"]["lines"] == 3 * 3
    assert seen["begin"]["panels"] == 3
    assert len(set(seen["swatches"])) == 3
    assert not any("NaN" in path for path in (seen["begin"]["path"], seen["log"]["path"]))


def test_switches_change_what_is_drawn(visit: tuple[dict, str]) -> None:
    seen, _ = visit
    begin = seen["begin"]
    assert (begin["axis"], seen["tokens"]["axis"], seen["steps"]["axis"]) == ("steps", "tokens", "steps")
    assert (begin["last"], seen["tokens"]["last"]) == (930, 930 * samples.TOKENS_PER_STEP)
    assert seen["steps"]["path"] == begin["path"]
    assert seen["raw"]["path"] != begin["path"]
    # At first close up: the losses of the first steps are beyond the panel.
    assert begin["range"][1] < 3 < seen["whole"]["range"][1]
    assert seen["log"]["path"] != seen["whole"]["path"]
    assert 10 ** seen["log"]["range"][1] == pytest.approx(seen["whole"]["range"][1], rel=0.2)
    assert all(re.fullmatch(r"[\d.]+", tick) for tick in seen["log"]["ticks"][:3])


def test_the_legend_hides_a_point_in_all_panels_together(visit: tuple[dict, str]) -> None:
    seen, _ = visit
    lines = [seen[moment]["lines"] for moment in ("begin", "hidden", "shown", "alone")]
    assert lines == [9, 6, 9, 3]


def test_a_head_sorts_the_table(visit: tuple[dict, str]) -> None:
    seen, _ = visit
    given = seen["begin"]["order"]
    assert given == [f"decay_frac={frac}" for frac in (0.1, 0.2, 0.4)]
    # Lowest validation loss first; each decays further than the one before.
    assert seen["sorted"]["order"][0] == "decay_frac=0.4"
    assert seen["reversed"]["order"] == seen["sorted"]["order"][::-1]


def test_lanes_of_the_tree_stand_at_their_steps(visit: tuple[dict, str]) -> None:
    seen, _ = visit
    first, leaf, second, *_ = seen["lanes"]
    assert leaf["left"] == pytest.approx(first["right"], abs=1)
    assert second["left"] == pytest.approx(first["right"], abs=1)
    assert first["width"] / leaf["width"] == pytest.approx(600 / 400, rel=0.02)
    assert first["top"] < leaf["top"] < second["top"]

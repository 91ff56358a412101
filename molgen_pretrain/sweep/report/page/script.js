"use strict";
(() => {
  const { points, closeUp } = JSON.parse(document.getElementById("data").textContent);
  const plot = document.getElementById("curves");
  const state = { axis: "steps", train: "smoothed", scale: "linear", height: "all" };
  const hidden = new Set();
  const PANELS = [
    { title: "Train loss", axis: "y", domain: [0.56, 1], isLoss: true, curve: () => state.train },
    { title: "Validation loss", axis: "y2", domain: [0.22, 0.5], isLoss: true, curve: () => "validation" },
    { title: "Learning rate", axis: "y3", domain: [0, 0.16], isLoss: false, curve: () => "lr" },
  ];
  const RATE_AXIS = { rangemode: "tozero", exponentformat: "e" };
  const LOG_TICKS = [0.01, 0.1, 1, 10, 100].flatMap((power) => [1, 1.5, 2, 3, 5, 7].map((digit) => digit * power));
  const wide = {}; // loss axes that span a power of ten, where Plotly would label by bare digits

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axisOf = (panel) => panel.axis.replace("y", "yaxis");
  // Plotly reads names as a subset of HTML.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function trace(point, index, panel) {
    const curve = point[panel.curve()];
    const look = color(`--point-${point.color}`);
    return {
      type: "scatter",
      name: plain(point.name),
      x: curve[state.axis],
      y: curve.values,
      yaxis: panel.axis,
      mode: curve.values.length < 2 || (panel.axis === "y2" && curve.values.length < 40) ? "lines+markers" : "lines",
      line: { color: look, width: curve === point.raw ? 1 : 1.8, dash: point.dash },
      marker: { color: look, size: 6 },
      visible: !hidden.has(index),
      hovertemplate: panel.isLoss ? "%{y:.4f}" : "%{y:.3~g}",
    };
  }

  function layout() {
    const ink = color("--ink"), muted = color("--muted"), line = color("--line"), card = color("--card");
    const grid = { gridcolor: line, zeroline: false, tickfont: { color: muted }, automargin: true };
    const made = {
      paper_bgcolor: card,
      plot_bgcolor: card,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
      margin: { l: 62, r: 12, t: 30, b: 46 },
      showlegend: false,
      hovermode: points.length > 16 ? "closest" : "x unified",
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink }, namelength: 48 },
      dragmode: "zoom",
      // A zoom outlives every switch but the one that gives its axis another meaning.
      uirevision: "zoom",
      xaxis: {
        ...grid, anchor: "y3", title: { text: state.axis, font: { color: muted, size: 12.5 } }, showgrid: false,
        linecolor: line, tickformat: state.axis === "steps" ? ",d" : "~s", uirevision: state.axis,
        unifiedhovertitle: { text: state.axis === "steps" ? "step %{x:,d}" : "%{x:.4s} tokens" },
        showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot", spikecolor: muted,
      },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink },
      annotations: [],
    };
    for (const panel of PANELS) {
      made[axisOf(panel)] = { ...grid, domain: panel.domain, ...(panel.isLoss ? lossAxis(panel) : RATE_AXIS) };
      made.annotations.push({
        text: `<b>${panel.title}</b>`, xref: "paper", yref: "paper", x: 0, y: panel.domain[1], xanchor: "left",
        yanchor: "bottom", yshift: 6, showarrow: false, font: { color: muted, size: 12.5 },
      });
    }
    return made;
  }

  function lossAxis(panel) {
    const axis = { type: state.scale, uirevision: `${state.scale} ${state.height}`, autorange: true };
    if (state.scale === "log" && wide[panel.axis]) axis.tickvals = LOG_TICKS;
    const close = (state.height === "close-up" && closeUp[panel.curve()]) || [];
    const range = state.scale === "log" ? close.map(Math.log10) : [...close];
    if (range.length && range.every(Number.isFinite)) Object.assign(axis, { autorange: false, range });
    return axis;
  }

  async function draw() {
    const traces = PANELS.flatMap((panel) => points.map((point, index) => trace(point, index, panel)));
    await Plotly.react(plot, traces, layout(), {
      responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    });
    await settleTicks();
  }

  async function settleTicks() {
    let isNew = false;
    for (const panel of PANELS.filter((one) => one.isLoss)) {
      const range = plot.layout[axisOf(panel)].range;
      const isWide = state.scale === "log" && range[1] - range[0] >= 1;
      isNew = isNew || isWide !== Boolean(wide[panel.axis]);
      wide[panel.axis] = isWide;
    }
    if (isNew) await draw();
  }

  document.querySelectorAll("[data-set]").forEach((button) => {
    button.addEventListener("click", () => set(button.dataset.set, button.dataset.value));
  });

  async function set(key, value) {
    state[key] = value;
    document.querySelectorAll(`[data-set=${key}]`).forEach((other) => {
      other.setAttribute("aria-pressed", String(other.dataset.value === value));
    });
    await draw();
  }

  const chips = [...document.querySelectorAll("[data-point]")];

  function show() {
    chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(!hidden.has(i))));
    draw();
  }

  chips.forEach((chip, index) => {
    chip.addEventListener("click", () => {
      if (!hidden.delete(index)) hidden.add(index);
      show();
    });
    chip.addEventListener("dblclick", () => {
      // The two clicks before have left everything as it was.
      const isAlone = !hidden.has(index) && hidden.size === points.length - 1;
      hidden.clear();
      if (!isAlone) points.forEach((_, i) => i !== index && hidden.add(i));
      show();
    });
  });

  document.querySelectorAll("th button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const isUp = head.getAttribute("aria-sort") !== "ascending";
      head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      sortRows(head.closest("table").tBodies[0], head.cellIndex, head.classList.contains("number"), isUp ? 1 : -1);
    });
  });

  function sortRows(body, column, isNumber, direction) {
    const key = (row) => row.cells[column].dataset.sort;
    const compare = (a, b) => (isNumber ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
    const rows = [...body.rows];
    const known = rows.filter((row) => key(row) !== undefined);
    const unknown = rows.filter((row) => key(row) === undefined);
    known.sort((a, b) => direction * compare(key(a), key(b)));
    body.append(...known, ...unknown);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  set("height", closeUp.smoothed ? "close-up" : "all").then(() => plot.on("plotly_relayout", settleTicks));
})();

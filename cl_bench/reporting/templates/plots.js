"use strict";
// Draws the plots when they become visible, each with a legend of buttons that show and hide its curves.

const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");
const drawn = new Set();

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function lighter(colour) {
  // Colours chosen for a light background are too dark for the dark theme.
  const found = /^#([0-9a-f]{6})$/i.exec(colour);
  if (!found) return colour;
  const parts = [0, 2, 4].map((i) => parseInt(found[1].slice(i, i + 2), 16));
  // Greys change places: the darkest on white becomes the lightest, or it would look like a row without emphasis.
  if (Math.max(...parts) === Math.min(...parts)) return `rgb(${parts.map((part) => Math.round(255 - 0.7 * part)).join(",")})`;
  const light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
  const mix = light < 0.55 ? 0.42 : 0.1;
  return `rgb(${parts.map((part) => Math.round(part + (255 - part) * mix)).join(",")})`;
}

function themed(chart, div) {
  const copy = structuredClone(chart);
  for (const trace of copy.data) {
    for (const part of ["line", "marker"]) {
      if (!trace[part]) continue;
      if (trace[part].color === "muted") trace[part].color = ink("--muted");
      else if (trace[part].color && dark.matches) trace[part].color = lighter(trace[part].color);
    }
    if (trace.name === "Pareto front") trace.line.color = ink("--soft");
    if (trace.marker && trace.type === "scatter") trace.marker.line = { width: 1, color: ink("--paper") };
    for (const axis of ["error_x", "error_y"]) if (trace[axis]) trace[axis].color = trace.marker.color;
  }
  const axis = { gridcolor: ink("--grid"), linecolor: ink("--soft"), zeroline: false, automargin: true, ticks: "outside", tickcolor: ink("--line") };
  const layout = { ...copy.layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: ink("--ink") }, colorway: [ink("--accent")], showlegend: false,
    // Leave room for plotly's buttons above the titles of panels.
    margin: { l: 60, r: 20, t: copy.layout.annotations.length ? 56 : 34, b: 55 }, height: copy.height,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink("--soft"), activecolor: ink("--accent") },
    hoverlabel: { bgcolor: ink("--card"), bordercolor: ink("--line"), font: { color: ink("--ink") } } };
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) layout[name] = { ...axis, ...layout[name] };
  if (copy.wide) layout.width = narrow.matches ? 900 : undefined;
  else if (copy.square) layout.width = Math.min(copy.height + 200, div.clientWidth);
  return [copy.data, layout];
}

// --- legends --------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = {
  circle: "M6 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z", square: "M6.5 -4h8v8h-8Z", "triangle-up": "M10.5 -5l5 9h-10Z", "triangle-down": "M10.5 5l5 -9h-10Z",
  diamond: "M10.5 -5.5l5 5.5l-5 5.5l-5 -5.5Z", cross: "M9 -5h3v3.500h3.500v3h-3.500v3.500h-3v-3.500h-3.500v-3h3.500Z", x: "M7 -5.500l3.500 3.500l3.500 -3.500l2 2l-3.500 3.500l3.500 3.500l-2 2l-3.500 -3.500l-3.500 3.500l-2 -2l3.500 -3.500l-3.500 -3.500Z",
  "triangle-left": "M5.500 0l9 -5v10Z", "triangle-right": "M15.500 0l-9 -5v10Z", star: "M10.500 -6l1.500 4h4l-3.200 2.500l1.200 4l-3.500 -2.500l-3.500 2.500l1.200 -4l-3.200 -2.500h4Z",
};

function swatch(trace) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 -7 21 14", width: "24", height: "16", "aria-hidden": "true" })) svg.setAttribute(name, value);
  const part = (name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    svg.append(node);
  };
  const colour = (given) => (given === "muted" ? ink("--muted") : !given ? ink("--soft") : dark.matches ? lighter(given) : given);
  if (trace.mode.includes("lines")) {
    const dash = trace.line.dash === "solid" ? "none" : trace.line.dash.replaceAll("px", "");
    part("line", { x1: "0", x2: "21", y1: "0", y2: "0", stroke: colour(trace.line.color), "stroke-width": "2", "stroke-dasharray": dash });
  }
  if (trace.mode.includes("markers")) part("path", { d: SHAPES[trace.marker.symbol] || SHAPES.circle, fill: colour(trace.marker.color) });
  return svg;
}

function legend(div) {
  // plotly's own legend cannot be reached by keyboard, has small targets and scrolls: this one is HTML below the plot.
  const entries = DATA.charts[div.dataset.chart].legend;
  const old = div.nextElementSibling?.matches(".legend") ? div.nextElementSibling : null;
  if (entries.length < 2) return;
  const off = old ? new Set([...old.querySelectorAll("[aria-pressed=false]")].map((button) => button.dataset.group)) : new Set();
  const list = el("div", { class: "legend", role: "group", "aria-label": "Curves; press to hide or show" }, ...entries.map((trace) => {
    const button = el("button", { type: "button", "aria-pressed": String(!off.has(trace.legendgroup)), "data-group": trace.legendgroup });
    // Names of traces are escaped for plotly.
    const text = new DOMParser().parseFromString(trace.name, "text/html").documentElement.textContent;
    button.append(swatch(trace), el("span", {}, text));
    button.addEventListener("click", async () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      if (!drawn.has(div)) await draw(div);
      Plotly.restyle(div, { visible: shown }, div.data.flatMap((one, i) => (one.legendgroup === trace.legendgroup ? [i] : [])));
    });
    return button;
  }));
  if (old) old.replaceWith(list);
  else div.after(list);
}

function apply(div, data) {
  const off = new Set([...(div.nextElementSibling?.querySelectorAll("[aria-pressed=false]") || [])].map((button) => button.dataset.group));
  for (const trace of data) if (off.has(trace.legendgroup)) trace.visible = false;
  return data;
}

function reserve() {
  // Reserve the height of every plot, so that the content below does not move (and clicks miss) when it is drawn.
  for (const div of document.querySelectorAll("div.plot")) {
    div.style.minHeight = `${DATA.charts[div.dataset.chart].height}px`;
    legend(div);
  }
}

// --- drawing --------------------------------------------------------------------------------------------------------

let plotly = null;

async function loadScript() {
  const source = document.getElementById("plotly");
  const script = el("script");
  if (source.dataset.src) {
    const loaded = new Promise((resolve, reject) => { script.onload = resolve; script.onerror = reject; });
    script.src = source.dataset.src;
    document.head.append(script);
    return loaded;
  }
  script.textContent = await unpacked(source.textContent);
  document.head.append(script);
}

function loadPlotly() {
  // plotly.js is read with the first visible plot, so that the tables appear at once.
  plotly ??= loadScript();
  return plotly;
}

const OPTIONS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"] };

async function draw(div) {
  let chart;
  try {
    [chart] = await Promise.all([part(partOf("charts", div)).then((charts) => charts[div.dataset.chart]), loadPlotly()]);
  } catch {
    div.replaceChildren(el("p", { class: "soft" }, `${UNREADABLE}, nor draw its plots: their numbers are in the folder 'figures' beside it.`));
    return;
  }
  const [data, layout] = themed(chart, div);
  await Plotly.react(div, apply(div, data), layout, OPTIONS);
  drawn.add(div);
}

function pictureButton(div) {
  const button = el("button", { type: "button", class: "link" }, "Picture (SVG)");
  button.addEventListener("click", async () => {
    if (!drawn.has(div)) await draw(div);
    Plotly.downloadImage(div, { format: "svg", filename: div.dataset.chart.replaceAll("/", "-"), width: div.clientWidth, height: DATA.charts[div.dataset.chart].height });
  });
  return button;
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }
}, { rootMargin: "300px" });

dark.addEventListener("change", () => { reserve(); drawn.forEach(draw); });
narrow.addEventListener("change", () => drawn.forEach(draw));
reserve();
for (const div of document.querySelectorAll("div.plot")) {
  div.closest("figure").querySelector(".downloads")?.append(" ", pictureButton(div));
  watcher.observe(div);
}

"use strict";
// Makes the tables sortable and filterable and shows details of rows and runs; plots.js draws the plots.
// Texts from result files enter the page as text nodes, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
// The rest of the data: JSON of the runs, charts and files of each protocol, which is unpacked when it is needed.
const parts = new Map();
const UNREADABLE = "This browser cannot unpack the data of this page (Chrome 80, Firefox 113, Safari 16.4 or newer can)";
const FRESH = { metric: DATA.columns[0] ?? "acc", filter: "", benchmark: "", backbone: "", protocol: "", origin: "", sort: "", down: true };
const state = { ...FRESH };
let place = ""; // id of the part of the page that the address names
const open = new Set();

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed.trim()), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function part(name) {
  if (!parts.has(name)) parts.set(name, unpacked(document.querySelector(`[data-part="${CSS.escape(name)}"]`).textContent).then(JSON.parse));
  return parts.get(name);
}

// Name of the part of a protocol, or of the papers, that an element belongs to.
const partOf = (kind, element) => `${kind}/${element.closest("section.protocol")?.dataset.slug ?? "papers"}`;

const fixed = (value) => value.toFixed(2);
const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(2);
const spread = ([mean, half]) => fixed(mean) + (half === null ? "" : " \u00b1 " + fixed(half));
const small = (p) => (p === null ? "\u2013" : p < 0.001 ? "<0.001" : p.toFixed(3));

function breakable(text) {
  return text.split(/(?<=[[,])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

// --- state of the view, kept in the address so that a link opens the same view -------------------------------------------------------

function readState() {
  // An address ends in the id of a part of the page, in a view, or in both: #sort=bwt&at=papers.
  let text = location.hash.slice(1);
  try { text = decodeURIComponent(text); } catch { /* no valid escape: not an id */ }
  const named = document.getElementById(text);
  const given = new URLSearchParams(named ? "" : location.hash.slice(1));
  place = named ? text : given.get("at") || "";
  Object.assign(state, FRESH);
  for (const key of Object.keys(state)) {
    if (given.has(key)) state[key] = key === "down" ? given.get(key) === "1" : given.get(key);
  }
  if (!(state.metric in DATA.metrics)) state.metric = FRESH.metric;
}

function writeState() {
  const shown = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    if (key === "down" ? state.sort && !value : value && !(key === "metric" && value === FRESH.metric)) shown.set(key, key === "down" ? "0" : value);
  }
  const view = shown.toString();
  if (view && place) shown.set("at", place);
  history.replaceState(null, "", view ? "#" + shown : place ? "#" + encodeURIComponent(place) : location.pathname + location.search);
}

function go(id, focused) {
  const target = document.getElementById(id);
  if (!target) return;
  if (target.closest("section.protocol[hidden]")) {
    Object.assign(state, FRESH, { metric: state.metric });
    show();
  }
  for (let around = target.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
  target.scrollIntoView({ behavior: focused ? "auto" : "instant" });
  if (focused) {
    const head = target.querySelector("h2, summary, h3") || target;
    if (!head.matches("summary, [tabindex]")) head.setAttribute("tabindex", "-1");
    head.focus({ preventScroll: true });
  }
}

// --- leaderboards ---------------------------------------------------------------------------------------------------

function columns() {
  const rest = DATA.columns.filter((name) => name !== state.metric);
  return [state.metric, ...rest];
}

// Rows that were chosen when the page was made stay in the order in which they were asked for, until a head is clicked.
const sortKey = () => state.sort || (DATA.chosen ? "" : state.metric);

function sortValue(row, key, costs) {
  if (key === "method") return row.label;
  const cost = costs.indexOf(key);
  if (cost >= 0) return row.sort[cost];
  return row.metrics[key] ? row.metrics[key][0] : null;
}

function sorted(rows, costs) {
  const key = sortKey();
  if (!key) return rows;
  const down = state.sort ? state.down : DATA.metrics[state.metric].higher;
  return [...rows].sort((a, b) => {
    const [x, y] = [sortValue(a, key, costs), sortValue(b, key, costs)];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
}

function head(key, title, description) {
  const current = sortKey() === key;
  const down = state.sort ? state.down : DATA.metrics[state.metric].higher;
  const press = () => {
    state.down = current ? !down : key !== "method" && !(key in DATA.metrics && !DATA.metrics[key].higher);
    state.sort = key;
    update();
    const again = document.querySelector(`[data-slug="${CSS.escape(lastSlug)}"] button[data-key="${key}"]`);
    if (again) again.focus();
  };
  return el("th", { scope: "col", "aria-sort": current ? (down ? "descending" : "ascending") : null, title: description },
    el("button", { type: "button", "data-key": key, onclick: (event) => { lastSlug = event.target.closest("section").dataset.slug; press(); } }, title));
}
let lastSlug = "";

function scale(rows, metric) {
  const ends = rows.filter((row) => row.metrics[metric]).flatMap((row) => {
    const [mean, half] = row.metrics[metric];
    return [mean - (half || 0), mean + (half || 0)];
  });
  // An outlier must not compress the scale for all other rows: it is drawn at the end of the scale.
  const means = rows.filter((row) => row.metrics[metric]).map((row) => row.metrics[metric][0]).sort((a, b) => a - b);
  const quarter = (share) => means[Math.round(share * (means.length - 1))];
  const reach = 2 * (quarter(0.75) - quarter(0.25)) || Infinity;
  return [Math.max(Math.min(...ends), quarter(0.25) - reach), Math.min(Math.max(...ends), quarter(0.75) + reach)];
}

function cell(row, metric, range) {
  const value = row.metrics[metric];
  if (!value) return el("td", {}, "\u2013");
  if (metric !== state.metric) return el("td", {}, spread(value));
  const place = (x) => (range[1] > range[0] ? Math.min(100, Math.max(0, (100 * (x - range[0])) / (range[1] - range[0]))) : 50) + "%";
  const [mean, half] = value;
  const bar = el("span", { class: "range", "aria-hidden": "true" });
  if (half !== null) {
    const interval = el("i");
    interval.style.left = place(mean - half);
    interval.style.width = `calc(${place(mean + half)} - ${place(mean - half)})`;
    bar.append(interval);
  }
  const mark = el("b");
  mark.style.left = `calc(${place(mean)} - 1px)`;
  bar.append(mark);
  return el("td", { class: "primary" }, spread(value), bar);
}

function runsOf(row, found) {
  const runs = row.runs.map((key) => [key, found.runs[key]]);
  return el("table", {},
    el("thead", {}, el("tr", {}, ...["run", "seed", "class order", "acc, %", "minutes", "finished"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...runs.map(([key, run]) => el("tr", {},
      el("th", { scope: "row" }, el("button", { class: "row run", type: "button", title: "Accuracy matrix, settings and the command that repeats this run", onclick: () => showRun(key, found) }, el("code", {}, key))),
      el("td", {}, String(run.seed)), el("td", {}, run.order), el("td", {}, fixed(run.acc)), el("td", {}, String(run.minutes.toPrecision(3))), el("td", {}, run.finished)))));
}

function detail(row, width, slug) {
  const list = el("div");
  part(`runs/${slug}`).then((found) => list.replaceChildren(runsOf(row, found)), () => list.replaceChildren(el("p", { class: "soft" }, `${UNREADABLE}, so its runs are not listed.`)));
  return el("tr", { class: "detail" }, el("td", { colspan: String(width) }, el("div", {},
    el("p", { class: "soft" }, row.about, row.ceiling ? "; trained on all tasks at once" : ""),
    el("p", {}, el("code", {}, row.settings || "no hyper-parameters")),
    DATA.pages ? el("p", {}, el("a", { href: DATA.pages[row.method] }, `All results of ${row.method}`)) : null, list)));
}

function leaderboard(section, protocol) {
  const table = section.querySelector("table.leaderboard");
  const filter = state.filter.toLowerCase();
  const costs = Object.keys(protocol.costs);
  const rows = sorted(protocol.rows.filter((row) => row.label.toLowerCase().includes(filter) && (!state.origin || row.origins.includes(state.origin))), costs);
  const names = columns();
  const range = scale(protocol.rows, state.metric);
  const width = 1 + names.length + costs.length;
  const body = el("tbody");
  for (const row of rows) {
    const key = protocol.slug + "/" + row.label;
    const toggle = () => {
      if (!open.delete(key)) open.add(key);
      update();
      const again = section.querySelector(`button[data-row="${CSS.escape(row.label)}"]`);
      if (again) again.focus();
    };
    // Clicks on the button bubble up to the row; a click that ends a text selection must not open the details.
    const click = (event) => { if (event.target.closest("button") || getSelection().isCollapsed) toggle(); };
    const title = row.mixed ? `A run was resumed in another environment: ${row.mixed}` : null;
    body.append(el("tr", { class: [row.ceiling && "ceiling", row.highlight && "highlight"].filter(Boolean).join(" ") || null, title, onclick: click },
      el("th", { scope: "row" }, el("button", { class: "row", type: "button", "data-row": row.label, "aria-expanded": String(open.has(key)), title: "Details and runs" }, ...breakable(row.name))),
      ...names.map((name) => cell(row, name, range)),
      ...row.cells.map((text) => el("td", {}, text))));
    if (open.has(key)) body.append(detail(row, width, protocol.slug));
  }
  const top = el("thead", {}, el("tr", {}, head("method", "method", "method and the options that were set"),
    ...names.map((name) => head(name, DATA.metrics[name].title, DATA.metrics[name].description)),
    ...costs.map((name) => head(name, name, protocol.costs[name]))));
  table.replaceChildren(top, body);
  return rows.length;
}

// --- paired comparisons of rows ----------------------------------------------------------------------------------------

function pairs(details, protocol) {
  details.hidden = protocol.pairs !== null && !protocol.pairs.length;
  if (!protocol.pairs?.length) return;
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("select")) return;
    const choice = el("select", { "aria-label": "Baseline row" }, ...protocol.rows.map((row, i) => el("option", { value: String(i) }, row.label)));
    const place = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Paired comparisons" });
    const draw = () => {
      const base = Number(choice.value);
      const found = protocol.pairs.filter((pair) => pair[0] === base || pair[1] === base).map(([a, b, difference, half, p, holm, wins, ties, losses]) =>
        a === base ? [b, -difference, half, p, holm, losses, ties, wins] : [a, difference, half, p, holm, wins, ties, losses]);
      found.sort((x, y) => y[1] - x[1]);
      place.replaceChildren(el("table", {},
        el("thead", {}, el("tr", {}, ...["row", "difference in acc, points", "p", "p (Holm)", "win/tie/loss"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...found.map(([row, difference, half, p, holm, wins, ties, losses]) => el("tr", {},
          el("th", { scope: "row" }, ...breakable(protocol.rows[row].name)),
          el("td", {}, signed(difference) + (half === null ? "" : " \u00b1 " + fixed(half))), el("td", {}, small(p)), el("td", {}, small(holm)), el("td", {}, `${wins}/${ties}/${losses}`))))));
    };
    choice.addEventListener("change", draw);
    details.append(el("p", {}, "Difference of each row from ", choice), place,
      el("p", { class: "soft" }, "Final accuracy on the same seeds and class orders: mean difference \u00b1 half-width of its 95 % Student-t interval; p: paired t test; p (Holm): corrected for all pairs of this protocol. For equivalence tests and more, use cl-bench compare."));
    draw();
  });
}

// --- one run --------------------------------------------------------------------------------------------------------

function fields(values) {
  return el("dl", {}, ...Object.entries(values).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function copyButton(text) {
  const button = el("button", { type: "button" }, "Copy");
  button.addEventListener("click", () => {
    // navigator.clipboard needs a secure origin, and not every browser counts a local file as one.
    const area = el("textarea");
    area.value = text;
    button.after(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    button.textContent = copied ? "Copied" : "Not copied";
    button.focus();
  });
  return button;
}

function matrix(run) {
  const tasks = run.total.map((_, j) => j + 1);
  const shade = (value) => `color-mix(in srgb, var(--bar) ${Math.round(100 * value)}%, transparent)`;
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Accuracy matrix" }, el("table", { class: "heat" },
    el("thead", {}, el("tr", {}, el("th"), ...tasks.map((task) => el("th", { scope: "col" }, String(task))))),
    el("tbody", {}, ...run.correct.map((row, t) => el("tr", {}, el("th", { scope: "row" }, String(t + 1)), ...row.map((hits, j) => {
      if (hits === null) return el("td");
      const value = hits / run.total[j];
      const node = el("td", { title: `${hits} of ${run.total[j]}` }, (100 * value).toFixed(1));
      node.style.background = shade(value);
      return node;
    }))))));
}

function showRun(key, found) {
  const run = found.runs[key];
  const dialog = document.getElementById("run");
  document.getElementById("run-title").replaceChildren(`${run.label}, seed ${run.seed}`);
  document.getElementById("run-body").replaceChildren(
    el("p", { class: "soft" }, `key ${key}; class order ${run.order}; ${fixed(run.acc)} % in ${run.minutes.toPrecision(3)} minutes`, run.finished ? `, finished ${run.finished}` : ""),
    el("p", {}, "Repeat this run and compare every count and prediction:"),
    el("div", { class: "copy" }, el("pre", { id: "command", tabindex: "0" }, run.command), copyButton(run.command)),
    el("h3", {}, "Accuracy matrix"),
    el("p", { class: "soft" }, "Accuracy on each task (columns) after each stage (rows), in percent."),
    matrix(run),
    el("h3", {}, "Experiment"), fields(found.shared[run.experiment]),
    el("h3", {}, "Hyper-parameters"), fields(found.shared[run.settings]),
    el("h3", {}, "Environment"), fields(found.shared[run.environment]),
    run.mixed ? el("p", { class: "mixed" }, `The run was interrupted and resumed in another environment: ${run.mixed}.`) : "");
  dialog.showModal();
}

// --- filters and initial view ---------------------------------------------------------------------------------------------------

function update() {
  let count = 0;
  let tables = 0;
  for (const section of document.querySelectorAll("section.protocol")) {
    const protocol = bySlug.get(section.dataset.slug);
    const wanted = (!state.benchmark || protocol.benchmark === state.benchmark) && (!state.backbone || protocol.backbone === state.backbone) && (!state.protocol || protocol.digest === state.protocol);
    const rows = wanted ? leaderboard(section, protocol) : 0;
    section.hidden = !rows;
    count += rows;
    tables += rows > 0;
  }
  document.getElementById("none").hidden = count > 0;
  document.getElementById("found").textContent = `${count} row${count === 1 ? "" : "s"} in ${tables} table${tables === 1 ? "" : "s"}`;
  const { description, higher } = DATA.metrics[state.metric];
  document.getElementById("meaning").textContent = `${state.metric}: ${description}; ${higher ? "more" : "less"} is better.`;
  writeState();
}

function fill(id, values) {
  const select = document.getElementById(id);
  for (const value of [...new Set(values)].sort()) select.append(el("option", { value }, value));
  select.addEventListener("change", () => { state[id] = select.value; update(); });
}

function show() {
  for (const name of ["filter", "metric", "benchmark", "backbone", "protocol", "origin"]) document.getElementById(name).value = state[name];
  update();
}

function restore() {
  readState();
  show();
  if (place) go(place, false);
}

const bySlug = new Map(DATA.protocols.map((protocol) => [protocol.slug, protocol]));
const tools = document.getElementById("tools");

function start() {
  fill("benchmark", DATA.protocols.map((protocol) => protocol.benchmark));
  fill("backbone", DATA.protocols.map((protocol) => protocol.backbone));
  fill("protocol", DATA.protocols.map((protocol) => protocol.digest));
  fill("origin", DATA.protocols.flatMap((protocol) => protocol.rows.flatMap((row) => row.origins)));
  const metric = document.getElementById("metric");
  metric.addEventListener("change", () => { state.metric = metric.value; state.sort = ""; update(); });
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => { state.filter = filter.value; update(); });
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  document.getElementById("clear").addEventListener("click", () => {
    Object.assign(state, FRESH, { metric: state.metric });
    show();
    filter.focus();
  });
  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
  for (const details of document.querySelectorAll("details.pairs")) pairs(details, bySlug.get(details.dataset.slug));
  // Anchors come to rest below the tools, which stay at the upper edge of a wide screen.
  const leaveRoom = () => {
    const stays = getComputedStyle(tools).position === "sticky";
    document.documentElement.style.setProperty("--top", `${stays ? tools.offsetHeight : 0}px`);
  };
  new ResizeObserver(leaveRoom).observe(tools);
  for (const link of document.querySelectorAll('a[href^="#"]:not(.skip)')) {
    link.addEventListener("click", (event) => {
      // The view of the tables stays: the address of a link alone would reset it.
      event.preventDefault();
      place = decodeURIComponent(link.hash.slice(1));
      writeState();
      go(place, true);
    });
  }
  addEventListener("hashchange", restore);
  leaveRoom();
  restore();
}

for (const link of document.querySelectorAll("a[data-file]")) {
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const texts = await part(partOf("files", link)).catch(() => null);
    if (!texts) return link.replaceWith(`${link.textContent} (${UNREADABLE}; the file lies beside it)`);
    const url = URL.createObjectURL(new Blob([texts[link.dataset.file]], { type: "text/plain" }));
    el("a", { href: url, download: link.dataset.file.split("/")[1] }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
}
// Plots have their heights by then, so that an address leads to the right place.
if (tools) addEventListener("DOMContentLoaded", start);

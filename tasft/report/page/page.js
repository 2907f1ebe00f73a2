"use strict";
(() => {
// ---- data ------------------------------------------------------------------------------------------------------
// What Python has written (tasft/report/page/data.py). Text from there only ever becomes a text node.
const D = JSON.parse(document.getElementById("data").textContent);
const ROWS = 100, DRAWN = 30, CHIPS = 60, SIDES = 6, COLOURS = 8;  // rows shown at first, curves, names of selected runs, answers side by side
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const VIEWS = { runs: "Runs", "trade-off": "Trade-off", curves: "Curves", answers: "Responses", about: "About" };
const state = { view: "runs", sort: null, rows: ROWS, parts: new Set(), smooth: 1, benchmark: null, outcome: "", open: false,
  x: null, y: null, chosen: new Set(), lit: null };
const $ = (id) => document.getElementById(id);

function el(tag, given = {}, ...inside) {
  const made = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "css") Object.assign(made.style, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...inside.flat(Infinity).filter((each) => each !== null && each !== undefined));
  return made;
}
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const number = (v) => v === null || v === undefined ? "–" : String(+(+v).toPrecision(3));
const unique = (values) => [...new Set(values)];
const several = D.models.length > 1;
const keyOf = (column) => [column.judge, column.metric, column.benchmark].join("|");
const at = D.models.map((model) => new Map(model.columns.map((column, i) => [keyOf(column), i])));

// A row of the table and a point of a figure: a run, or a setting with its seeds together.
function item(from, id, runs) {
  const one = runs.length === 1 && from.seed !== null && from.seed !== undefined;
  const seeds = one ? `seed ${from.seed}` : count(runs.length, "seed");
  const sub = [seeds, several ? D.models[from.model].name : "", from.variant, from.state === "finished" ? "" : from.state].filter(Boolean).join(" · ");
  const costs = runs.map((i) => D.runs[i].cost).filter(Boolean);
  const total = (...keys) => costs.length ? costs.reduce((sum, cost) => sum + keys.reduce((s, key) => s + (cost[key] || 0), 0), 0) : null;
  const title = [from.label, from.variant, one ? seeds : ""].filter(Boolean).join(" ");
  return { ...from, id, runs, sub, title, seconds: total("training_seconds", "answering_seconds", "judging_seconds"), hours: total("gpu_hours"),
    words: [from.label, sub, title, D.models[from.model].name, one ? `seed=${from.seed}` : "", ...runs.map((i) => D.runs[i].path)].join(" ").toLowerCase() };
}
const RUNS = D.runs.map((run, i) => item(run, `r${i}`, [i]));
const SETTINGS = D.models.flatMap((model, m) => model.settings.map((setting, i) => item({ ...setting, model: m, share: setting.share }, `s${m}-${i}`, setting.runs)));
const items = () => $("together").checked ? SETTINGS : RUNS;
const place = new Map(SETTINGS.flatMap((setting, i) => setting.runs.map((run) => [run, i])));
const cell = (each, key) => each.cells[at[each.model].get(key)] ?? null;

function filtered() {
  const words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [model, loss, toxic] = ["model", "loss", "toxic"].map((id) => $(id).value);
  return items().filter((each) => (model === "" || each.model === +model) && (loss === "" || each.loss === loss) &&
    (toxic === "" || each.toxic === +toxic) && words.every((word) => each.words.includes(word)));
}
const models = () => $("model").value === "" ? D.models.map((_, i) => i) : [+$("model").value];

function columns() {  // of the chosen models together, in the order of the first
  const found = new Map();
  for (const m of models()) for (const column of D.models[m].columns) if (!found.has(keyOf(column))) found.set(keyOf(column), { ...column, key: keyOf(column) });
  return [...found.values()];
}

// ---- what is chosen --------------------------------------------------------------------------------------------
function chosenItems() { return items().filter((each) => each.runs.some((run) => state.chosen.has(run))); }
function choose(each, on) {
  for (const run of each.runs) on ? state.chosen.add(run) : state.chosen.delete(run);
}
// Colour and dash of what is chosen: by its place among the chosen ones, seeds of one setting alike where they stand together.
function styles() {
  const found = new Map();
  chosenItems().forEach((each, i) => each.runs.forEach((run) => found.set(run, { colour: `var(--c${i % COLOURS})`, dash: DASHES[Math.floor(i / COLOURS) % DASHES.length], each })));
  return found;
}
const swatch = ({ colour, dash }) => el("svg:svg", { width: 22, height: 10, "aria-hidden": "true" },
  el("svg:line", { x1: 1, x2: 21, y1: 5, y2: 5, "stroke-width": 2.6, "stroke-dasharray": dash, css: { stroke: colour } }));

function drawSelection() {
  const chosen = chosenItems(), look = styles(), what = $("together").checked ? "setting" : "run";
  const drop = (each, i) => { choose(each, false); redraw(); const left = document.querySelectorAll(".chip button"); if (left.length) left[Math.min(i, left.length - 1)].focus(); };
  const chips = chosen.slice(0, CHIPS).map((each, i) => el("span", { class: "chip", "data-id": each.id, onpointerenter: () => light(each.id), onpointerleave: () => light(null) },
    swatch(look.get(each.runs[0])), el("span", { title: `${each.title} ${each.sub}` }, named(each)),
    el("button", { "aria-label": `Deselect ${each.title}`, onclick: () => drop(each, i), onfocus: () => light(each.id), onblur: () => light(null) }, "×")));
  if (chosen.length > CHIPS) chips.push(el("span", { class: "dim" }, `and ${chosen.length - CHIPS} more`));
  const said = chosen.length ? `${count(chosen.length, what)} selected to compare:` : `No ${what} selected: tick some in the table, or click points under Trade-off.`;
  if (chosen.length) chips.push(el("button", { class: "link", onclick: () => { state.chosen.clear(); redraw(); } }, "Clear"));
  $("selection").replaceChildren(el("span", { class: "dim" }, said), ...chips);
}
const named = (each) => each.title + (several ? ` · ${D.models[each.model].name}` : "");
function light(id) {
  state.lit = id;
  document.querySelectorAll("[data-id]").forEach((node) => {
    node.classList.toggle("lit", id !== null && node.dataset.id === id);
    if (node instanceof SVGElement) node.classList.toggle("faded", id !== null && node.dataset.id !== id);
  });
}

// ---- runs ------------------------------------------------------------------------------------------------------
const percent = (v) => (100 * v).toFixed(1);
function rendered(column, value) {
  if (!value) return el("td", { class: "dim" }, el("span", { class: "value" }, "–"));
  const [v, low, high, spread, n, unscored] = value;
  const sized = `n ${n}`, missing = unscored ? el("span", { class: "bad" }, ` · ${unscored} unscored`) : null;
  if (v === null) return el("td", {}, el("span", { class: "value" }, "–"), el("span", { class: "ci" }, sized, missing));
  const show = column.percent ? percent : number;
  const interval = low === null ? "" : column.percent ? `${(100 * low).toFixed(0)}–${(100 * high).toFixed(0)}` : `${number(low)} to ${number(high)}`;
  const ends = [interval, spread === null ? "" : `±${show(spread)}`].filter(Boolean).join(" ");
  const [from, to] = low === null ? [v, v] : [low, high];
  const bar = column.percent ? el("span", { class: "bar", "aria-hidden": "true" }, el("i", { css: { left: `${100 * from}%`, width: `${100 * (to - from)}%` } }), el("b", { css: { left: `${100 * v}%` } })) : null;
  return el("td", {}, el("span", { class: "value" }, show(v)), bar, el("span", { class: "ci" }, ends, ends ? " · " : "", sized, missing));
}
function clock(seconds) {
  if (seconds === null) return "–";
  const minutes = Math.round(seconds / 60);
  return seconds < 120 ? `${Math.round(seconds)} s` : minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")}`;
}
const FIXED = {  // columns that say which run it is and what it cost
  run: { head: ["run", ""] },
  toxic: { head: ["toxic", "rows"], text: (each) => each.toxic, value: (each) => each.toxic },
  weight: { head: ["λ", ""], text: (each) => number(each.weight), value: (each) => each.weight },
  share: { head: ["share", ""], text: (each) => number(each.share), value: (each) => each.share },
  seed: { head: ["seed", ""], text: (each) => each.seeds ? each.seeds.join(" ") : each.seed ?? "–", value: (each) => each.seeds ? each.seeds.length : each.seed },
  seconds: { head: ["time", "all stages"], text: (each) => clock(each.seconds), value: (each) => each.seconds },
  hours: { head: ["GPU-hours", ""], text: (each) => number(each.hours), value: (each) => each.hours },
};
const COSTS = ["seconds", "hours"];
function fixed() {
  const there = Object.entries(FIXED).filter(([key, { value }]) => !value || ["toxic", "seed"].includes(key) || RUNS.some((each) => value(each) !== null && value(each) !== undefined && value(each) !== 0));
  return there.map(([key, column]) => ({ key, ...column }));
}
function sorted(list) {
  if (!state.sort || state.sort.key === "run") return state.sort && state.sort.down ? [...list].reverse() : list;
  const { key, down } = state.sort;
  const of = FIXED[key] ? FIXED[key].value : (each) => (cell(each, key) || [null])[0];
  const known = list.map((each) => [of(each), each]);
  const empty = known.filter(([v]) => v === null || v === undefined), full = known.filter(([v]) => v !== null && v !== undefined);
  full.sort(([a], [b]) => down ? b - a : a - b);  // stable: what is alike keeps the tables' order
  return [...full, ...empty].map(([, each]) => each);
}
const made = new Map();  // rows of the table, which sorting and filtering only move
function tableRow(each, settings, measured, costs) {
  const box = el("input", { type: "checkbox", "aria-label": `Select ${each.title}`, onchange: () => { choose(each, box.checked); row.classList.toggle("chosen", box.checked); drawSelection(); stale(); } });
  const who = el("button", { class: "plain who", title: "Command, versions, licences", onclick: () => details(each) }, each.label);
  const row = el("tr", { "data-item": each.id }, el("th", { scope: "row", class: "run" }, el("div", { class: "pick" }, box, who, el("span", { class: "sub", title: each.sub }, each.sub))),
    settings.slice(1).map((column) => el("td", { class: "fixed" }, String(column.text(each)))),
    measured.map((column) => rendered(column, cell(each, column.key))), costs.map((column) => el("td", {}, String(column.text(each)))));
  return row;
}
function drawRuns() {
  const list = sorted(filtered()), shown = list.slice(0, state.rows);
  const measured = columns().filter((column) => state.parts.has(column.part) && list.some((each) => cell(each, column.key)));
  const said = fixed(), costs = said.filter(({ key }) => COSTS.includes(key)), settings = said.filter(({ key }) => !COSTS.includes(key));
  const head = [...settings, ...measured.map((column) => ({ ...column, head: [column.group, column.name] })), ...costs];
  const all = list.length > 0 && list.every((each) => each.runs.every((run) => state.chosen.has(run)));
  const every = el("input", { type: "checkbox", "aria-label": "Select all rows that the filter leaves", onchange: (event) => { list.forEach((each) => choose(each, event.target.checked)); redraw(); document.querySelector("#runs thead input").focus(); } });
  every.checked = all;
  const header = el("tr", {}, head.map((column) => {
    const mine = state.sort && state.sort.key === column.key;
    const button = el("button", { class: "plain", title: column.judge ? `${column.benchmark}, by ${column.judge}` : null, onclick: () => {
      state.sort = mine ? (state.sort.first ? { key: column.key, down: !state.sort.down, first: false } : null) : { key: column.key, down: column.better === "high" || COSTS.includes(column.key), first: true };
      drawRuns();
      document.querySelector(`#runs th[data-key="${CSS.escape(column.key)}"] button`).focus();
    } }, el("span", { class: "head" }, column.head[0]), el("span", { class: "name" }, column.head[1]));
    return el("th", { scope: "col", class: column.key === "run" ? "run" : settings.includes(column) ? "fixed" : null, "data-key": column.key, "aria-sort": mine ? (state.sort.down ? "descending" : "ascending") : "none" },
      column.key === "run" ? el("div", { class: "pick" }, every, button) : button);
  }));
  const body = shown.map((each) => {
    const on = each.runs.every((run) => state.chosen.has(run)), key = `${each.id} ${head.map((column) => column.key)}`;
    if (!made.has(key)) made.set(key, tableRow(each, settings, measured, costs));
    const row = made.get(key);
    row.classList.toggle("chosen", on);
    row.querySelector("input").checked = on;
    return row;
  });
  const parts = unique(columns().map((column) => column.part));
  const tools = el("div", { class: "tools" }, parts.length > 1 ? ["Columns:", parts.map((part) => {
    const box = el("input", { type: "checkbox", onchange: (event) => { event.target.checked ? state.parts.add(part) : state.parts.delete(part); drawRuns(); } });
    box.checked = state.parts.has(part);
    return el("label", { class: "check" }, box, ` ${part}`);
  })] : null, el("span", { class: "dim small" }, "Rates in per cent of scored answers at the last step, with their 95 % intervals",
    $("together").checked ? ", those of several seeds over prompts and seeds, and ± the standard deviation over seeds" : "", ". Click a head to sort, a name for its command."));
  const more = list.length > shown.length ? el("p", {}, el("button", { onclick: () => { state.rows = Infinity; drawRuns(); } }, `Show all ${list.length}`), el("span", { class: "dim" }, ` the first ${shown.length} are shown`)) : null;
  const scroll = document.querySelector("#runs .table");
  const left = scroll ? [scroll.scrollLeft, scroll.scrollTop] : [0, 0];
  $("runs").replaceChildren(tools, list.length ? el("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Runs" }, el("table", {}, el("thead", {}, header), el("tbody", {}, body))) : el("p", { class: "dim" }, "No run passes the filter."), ...(more ? [more] : []));
  const now = document.querySelector("#runs .table");
  if (now) [now.scrollLeft, now.scrollTop] = left;
}

// ---- one run ---------------------------------------------------------------------------------------------------
function copy(text, button) {
  const said = (ok) => { const before = button.textContent; button.textContent = ok ? "Copied" : "Select and copy by hand"; setTimeout(() => { button.textContent = before; }, 1500); };
  const byHand = () => {  // where the browser gives a file no clipboard
    const area = el("textarea", { css: { position: "fixed", opacity: 0 } });
    area.value = text;
    (button.closest("dialog") || document.body).append(area);
    area.select();
    said(document.execCommand("copy"));
    area.remove();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => said(true), byHand); else byHand();
}
function command(run) {
  if (!run.command) return el("p", { class: "dim" }, `Its command cannot be made from its config: ${run.no_command}`);
  const button = el("button", { onclick: () => copy(run.command, button) }, "Copy");
  return el("div", {}, el("pre", { class: "command" }, run.command), el("div", { class: "tools" }, button,
    el("span", { class: "dim small" }, run.unknown ? `Not said: ${run.unknown.join(", ")}, which this version does not know.` : "Makes this run again; finished, it says so.")));
}
function pairs(list) { return el("dl", {}, list.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])); }
function details(each) {
  const box = $("details");
  const shown = each.runs.map((i) => {
    const run = D.runs[i], said = D.shared[run.environment] || {}, cost = run.cost || {};
    const rows = Object.entries(said.data || {}).map(([kind, [n, licence]]) => `${kind.replaceAll("_", " ")}: ${n} rows, ${licence || "no licence named"}`);
    return el("section", {}, each.runs.length > 1 ? el("h3", {}, `seed ${run.seed}`) : null, command(run), pairs([
      ["folder", run.path], ["state", run.state], ["λ", run.why ? `${number(run.weight)} (${run.why})` : null], ["training data", rows.join("; ")],
      ["time", run.cost ? `training ${clock(cost.training_seconds ?? null)}, answering ${clock(cost.answering_seconds ?? null)}, judging ${clock(cost.judging_seconds ?? null)}${cost.gpu_hours ? `; ${number(cost.gpu_hours)} GPU-hours` : ""}` : null],
      ["started", run.started], ["commit", run.commit], ["device", said.device], ["world size", said.world_size],
      ["versions", said.versions ? [`python ${said.python}`, ...Object.entries(said.versions).map((pair) => pair.join(" "))].join(", ") : null]]));
  });
  box.replaceChildren(el("header", {}, el("div", {}, el("h2", { id: "details-title" }, each.title), el("p", { class: "dim small" }, each.sub)), el("button", { onclick: () => box.close() }, "Close")), ...shown);
  box.showModal();
}

// ---- charts ----------------------------------------------------------------------------------------------------
const MARKS = [(r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`, (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`, (r) => `M0 ${-1.25 * r}L${1.15 * r} ${r}H${-1.15 * r}Z`,
  (r) => `M0 ${-1.35 * r}L${1.35 * r} 0L0 ${1.35 * r}L${-1.35 * r} 0Z`, (r) => `M0 ${1.25 * r}L${1.15 * r} ${-r}H${-1.15 * r}Z`, (r) => `M${-r} ${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}Z`];
const LOSSES = unique(D.runs.map((run) => run.loss)).sort().filter((loss) => loss !== "sft");
function lossStyle(loss) {
  const i = LOSSES.indexOf(loss);
  return loss === "sft" ? { colour: "var(--sft)", mark: MARKS[5] } : { colour: `var(--c${i % COLOURS})`, mark: MARKS[(i + Math.floor(i / COLOURS)) % MARKS.length] };
}
function ticks(low, high, n) {
  const raw = (high - low) / n || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}
// An empty chart: its svg, its scales, and its plane; `opt` has x, y: {low, high, label, log, ticks, show}.
function frame(host, { x, y, height = 250, label }) {
  const width = Math.max(260, Math.min(760, host.clientWidth || 420));
  const show = (v) => y.show ? y.show(v) : number(v);
  const yTicks = (y.ticks || ticks(y.low, y.high, 5)).filter((v) => v >= y.low && v <= y.high);
  const left = 14 + 7 * Math.max(...yTicks.map((v) => show(v).length), 2), right = 14, top = 10, bottom = x.label ? 42 : 26;
  const inner = [width - left - right, height - top - bottom];
  const along = (v, { low, high, log }) => log ? (Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low) || 1) : (v - low) / (high - low || 1);
  const sx = (v) => left + inner[0] * along(v, x), sy = (v) => top + inner[1] * (1 - along(v, y));
  const svg = el("svg:svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, tabindex: 0 });
  for (const v of yTicks) svg.append(el("svg:line", { class: "rule", x1: left, x2: width - right, y1: sy(v), y2: sy(v) }), el("svg:text", { x: left - 6, y: sy(v) + 4, "text-anchor": "end" }, show(v)));
  let end = -Infinity;
  for (const v of x.ticks || ticks(x.low, x.high, Math.max(3, inner[0] / 55))) {
    const text = x.show ? x.show(v) : number(v), half = 3.4 * text.length;
    if (sx(v) - half < end) continue;
    end = sx(v) + half + 5;
    svg.append(el("svg:line", { class: "rule", x1: sx(v), x2: sx(v), y1: top, y2: height - bottom }), el("svg:text", { x: sx(v), y: height - bottom + 16, "text-anchor": "middle" }, text));
  }
  svg.append(el("svg:line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  if (x.label) svg.append(el("svg:text", { x: left + inner[0] / 2, y: height - 6, "text-anchor": "middle" }, x.label));
  const plane = el("svg:g");
  svg.append(plane);
  return { svg, plane, sx, sy, width, height, left, right, top, bottom };
}
function tip(content, px, py) {
  const box = $("tip");
  box.replaceChildren(...content);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, px + 16 + width > innerWidth ? px - 16 - width : px + 16)}px`;
  box.style.top = `${Math.max(4, Math.min(py - height / 2, innerHeight - height - 4))}px`;
}
const hideTip = () => { $("tip").hidden = true; };
// Pointer and arrow keys go through `xs`; `show(x)` gives what the tip says, and marks the place.
function explore(made, xs, show, hide) {
  const { svg } = made;
  let now = -1;
  const go = (i, px, py) => {
    now = Math.max(0, Math.min(xs.length - 1, i));
    const said = show(xs[now]), box = svg.getBoundingClientRect(), scale = box.width / made.width;
    if (said) tip(said, px ?? box.left + made.sx(xs[now]) * scale, py ?? box.top + box.height / 2);
  };
  const away = () => { hideTip(); hide(); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), wanted = (event.clientX - box.left) * made.width / box.width;
    let best = 0;
    xs.forEach((x, i) => { if (Math.abs(made.sx(x) - wanted) < Math.abs(made.sx(xs[best]) - wanted)) best = i; });
    go(best, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", away);
  svg.addEventListener("blur", away);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (by) { event.preventDefault(); go(now < 0 ? (by > 0 ? 0 : xs.length - 1) : now + by); }
    if (event.key === "Escape") away();
  });
}
function range(values, { zero = false, pad = 0.05 } = {}) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  if (zero) low = Math.min(0, low);
  const room = (high - low) * pad || Math.abs(high) * 0.1 || 1;
  return { low: zero && low === 0 ? 0 : low - room, high: high + room };
}

function rates(values, unit = "") {  // from 0, with room for a mark at either end
  const high = Math.min(1, Math.max(0.1, ...values));
  return { low: -0.02 * high, high: 1.03 * high, ticks: ticks(0, high, 5), show: (v) => number(100 * v) + unit };
}

// ---- curves over steps -----------------------------------------------------------------------------------------
function smoothed(values) {
  const half = Math.floor(state.smooth / 2);
  return half ? values.map((_, i) => { const near = values.slice(Math.max(0, i - half), i + half + 1); return near.reduce((a, b) => a + b, 0) / near.length; }) : values;
}
function lineChart(host, title, lines, { rate = false, zero = false } = {}) {
  const caption = el("figcaption", {}, title), figure = el("figure", { "data-chart": title }, caption);
  host.append(figure);
  if (!lines.length) return;
  const xs = unique(lines.flatMap((line) => line.points.map(([x]) => x))).sort((a, b) => a - b);
  const ends = lines.flatMap((line) => line.points.flatMap(([, y, low, high]) => [y, low ?? y, high ?? y]));
  const y = rate ? rates(ends, " %") : range(ends, { zero });
  const made = frame(figure, { x: { low: xs[0], high: xs.length > 1 ? xs[xs.length - 1] : xs[0] + 1, label: "step" }, y, label: `${title} over steps, ${count(lines.length, "curve")}. Arrow keys read values.` });
  for (const { points, colour, dash, id } of lines) {
    const group = el("svg:g", { "data-id": id });
    if (rate && lines.length <= 4 && points.length > 1) group.append(el("svg:path", { d: `M${points.map(([px, py, low]) => `${made.sx(px)} ${made.sy(low ?? py)}`).join("L")}L${[...points].reverse().map(([px, py, , high]) => `${made.sx(px)} ${made.sy(high ?? py)}`).join("L")}Z`, css: { fill: colour, opacity: 0.12 } }));
    group.append(el("svg:path", { class: "curve", d: `M${points.map(([px, py]) => `${made.sx(px).toFixed(1)} ${made.sy(py).toFixed(1)}`).join("L")}`, "stroke-dasharray": dash, css: { stroke: colour } }));
    if (points.length <= 25) for (const [px, py] of points) group.append(el("svg:circle", { cx: made.sx(px), cy: made.sy(py), r: 2.6, css: { fill: colour } }));
    made.plane.append(group);
  }
  const cross = el("svg:line", { class: "cross", y1: made.top, y2: made.height - made.bottom, visibility: "hidden" });
  const dots = el("svg:g");
  made.svg.append(cross, dots);
  explore(made, xs, (x) => {
    cross.setAttribute("x1", made.sx(x)); cross.setAttribute("x2", made.sx(x)); cross.setAttribute("visibility", "visible");
    const near = lines.map((line) => {
      const best = line.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      return { line, best };
    }).filter(({ line, best }) => best[0] === x || (x >= line.points[0][0] && x <= line.points[line.points.length - 1][0]));
    near.sort((a, b) => b.best[1] - a.best[1]);
    dots.replaceChildren(...near.map(({ line, best }) => el("svg:circle", { cx: made.sx(best[0]), cy: made.sy(best[1]), r: 3.4, css: { fill: line.colour } })));
    const first = near.slice(0, 12), rest = near.length - first.length;
    return [el("strong", {}, `${title}, step ${x}`), el("table", {}, first.map(({ line, best }) => el("tr", {}, el("td", {}, swatch(line), ` ${line.label}`),
      el("td", {}, rate ? `${percent(best[1])} % (${percent(best[2])}–${percent(best[3])}, n ${best[4]})` : number(best[1]), best[0] === x ? "" : ` at ${best[0]}`)))),
      ...(rest ? [el("span", { class: "dim" }, `and ${rest} more`)] : [])];
  }, () => { cross.setAttribute("visibility", "hidden"); dots.replaceChildren(); });
  figure.append(made.svg);
}
function drawCurves() {
  const host = $("curves"), look = styles(), all = [...look.keys()].sort((a, b) => a - b), drawn = all.slice(0, DRAWN);
  host.replaceChildren();
  if (!all.length) { host.append(el("p", { class: "dim" }, "Select runs in the table: their curves are drawn here, beside one another.")); return; }
  const smooth = el("select", { onchange: (event) => { state.smooth = +event.target.value; drawCurves(); } }, [[1, "as logged"], [5, "mean of 5 points"], [15, "mean of 15 points"]].map(([n, text]) => el("option", { value: n, selected: n === state.smooth }, text)));
  host.append(el("div", { class: "tools" }, el("label", {}, "loss terms ", smooth),
    all.length > DRAWN ? el("span", { class: "bad" }, `The first ${DRAWN} of ${all.length} selected runs are drawn: select fewer to see the others.`) : null,
    el("span", { class: "dim small" }, "Colours are those of the selection above; point at a name there to find its curves.")));
  const grid = el("div", { class: "grid" }), missing = [];
  host.append(grid);
  const style = (run) => ({ colour: look.get(run).colour, dash: look.get(run).dash, id: look.get(run).each.id, label: named(RUNS[run]) });
  for (const [term, title] of Object.entries(D.terms)) {
    const lines = drawn.filter((run) => D.runs[run].curves[term]).map((run) => {
      const [steps, values] = D.runs[run].curves[term];
      const smooth = term === "weight" ? values : smoothed(values);
      return { ...style(run), points: D.steps[steps].map((step, i) => [step, smooth[i]]) };
    });
    lines.length ? lineChart(grid, title, lines, { zero: term === "weight" }) : missing.push(title);
  }
  const rates = new Map();
  for (const run of drawn) for (const [i, points] of Object.entries(D.runs[run].evals)) {
    const column = D.models[D.runs[run].model].columns[i], key = keyOf(column);
    if (!rates.has(key)) rates.set(key, { column, lines: [] });
    rates.get(key).lines.push({ ...style(run), points });
  }
  const order = [...rates.values()].sort((a, b) => (b.column.kind === "toxic") - (a.column.kind === "toxic"));
  for (const { column, lines } of order) lineChart(grid, `${column.group}: ${column.name} (${column.kind === "seeming" ? "seemingly toxic" : column.kind} prompts)`, lines, { rate: true });
  if (!order.length) missing.push("harm and over-refusal (asked during a training with evaluate.every_n_steps=...)");
  if (missing.length) host.append(el("p", { class: "dim small" }, `Not there for these runs: ${missing.join("; ")}.`));
}

// ---- harm by toxic rows, and by over-refusal -------------------------------------------------------------------
// Of points {x, y} those that no other is better than in one and at least as good as in the other, by x.
function pareto(points, lowX, lowY) {
  const sign = [lowX ? 1 : -1, lowY ? 1 : -1];
  const by = [...points].sort((a, b) => sign[0] * (a.x - b.x) || sign[1] * (a.y - b.y));
  const front = [];
  for (const point of by) {
    const last = front[front.length - 1];
    if (!last || sign[1] * (point.y - last.y) < 0 || (point.x === last.x && point.y === last.y)) front.push(point);
  }
  return front;
}
function upright(m) {
  const { columns, harm } = D.models[m], toxic = columns.filter((column) => column.kind === "toxic");
  const joint = toxic.filter((column) => column.part === "outcomes" && column.metric === (harm ? "harmful" : "refusal"));
  return joint.length ? joint : toxic.filter((column) => column.part === "scores and tasks");
}
function across(m) {
  const all = D.models[m].columns, joint = all.filter((column) => column.part === "outcomes");
  return [...joint.filter((column) => column.kind === "seeming"), ...joint.filter((column) => column.kind === "safe"), ...all.filter((column) => column.part === "scores and tasks" && column.kind !== "toxic")];
}
const title = (column) => `${column.group} · ${column.name}`;
function axis(column) {
  const kind = column.metric === "refusal" && column.kind === "seeming" ? "over-refusal: " : "";
  return `${kind}${title(column)}${column.percent ? " (%)" : ""}`;
}
const examples = (each) => { const stl = /^safe_answers=(\d+)$/.exec(each.variant); return each.toxic || (stl ? +stl[1] : 0); };

function value(column, v) {
  const show = column.percent ? percent : number, [mean, low, high, spread, n, unscored] = v;
  return `${show(mean)}${column.percent ? " %" : ""}${low === null ? "" : ` (${show(low)}–${show(high)})`}${spread === null ? "" : ` ±${show(spread)}`}, n ${n}${unscored ? `, ${unscored} unscored` : ""}`;
}
function scatter(host, { caption, points, x, y, xColumn, yColumn, front, lines, bands, height }) {
  const figure = el("figure", { "data-chart": caption }, el("figcaption", {}, caption, yColumn.percent ? el("span", { class: "dim" }, " (%)") : null));
  host.append(figure);
  const made = frame(figure, { x, y, height: height || 330, label: `${caption}, ${count(points.length, "point")}. Arrow keys read points, Enter selects.` });
  for (const band of bands || []) made.plane.append(el("svg:line", { x1: made.left, x2: made.width - made.right, y1: made.sy(band.y), y2: made.sy(band.y), "stroke-width": 1.4, "stroke-dasharray": "7 4", css: { stroke: "var(--sft)" } }),
    el("svg:text", { class: "label", x: made.width - made.right - 3, y: made.sy(band.y) + (made.sy(band.y) < made.top + 16 ? 14 : -5), "text-anchor": "end" }, band.label));
  for (const line of lines || []) made.plane.append(el("svg:path", { class: "curve", "stroke-dasharray": line.dash, opacity: 0.75, d: `M${line.points.map((p) => `${made.sx(p.x)} ${made.sy(p.y)}`).join("L")}`, css: { stroke: line.colour } }));
  if (front && front.length) {
    const corners = front.map((p, i) => i ? `H${made.sx(p.x)}V${made.sy(p.y)}` : `M${made.sx(p.x)} ${made.sy(p.y)}`);
    made.plane.append(el("svg:path", { class: "front", d: corners.join("") }));
  }
  const few = points.length <= 40, radius = points.length > 150 ? 3.6 : 4.8, onFront = new Set((front || []).map((p) => p.each.id));
  for (const point of points) {
    const { colour, mark } = lossStyle(point.each.loss), [px, py] = [made.sx(point.x), made.sy(point.y)];
    const group = el("svg:g", { class: "point", "data-point": point.each.id, "data-front": onFront.has(point.each.id) ? "yes" : null });
    const bar = ([, low, high]) => low === null ? null : [low, high];
    if (few) for (const [ends, vertical] of [[point.cells[1] && bar(point.cells[1]), true], [point.cells[0] && bar(point.cells[0]), false]]) {
      if (!ends) continue;
      const [a, b] = vertical ? ends.map((v) => made.sy(Math.max(y.low, Math.min(y.high, v)))) : ends.map((v) => made.sx(Math.max(x.low, Math.min(x.high, v))));
      group.append(el("svg:line", { ...(vertical ? { x1: px, x2: px, y1: a, y2: b } : { x1: a, x2: b, y1: py, y2: py }), opacity: 0.4, css: { stroke: colour } }));
    }
    group.append(el("svg:path", { d: mark(radius), transform: `translate(${px} ${py})`, "stroke-width": 0.8, css: { fill: colour, stroke: "var(--back)", fillOpacity: onFront.has(point.each.id) || few ? 1 : 0.75 } }));
    if (point.each.runs.some((run) => state.chosen.has(run))) group.append(el("svg:circle", { class: "ring", cx: px, cy: py, r: radius + 3.6 }));
    made.plane.append(group);
  }
  labels(made, points, points.length <= 10 ? points : front || [], radius);
  let now = -1;
  const order = points.map((_, i) => i).sort((a, b) => points[a].x - points[b].x || points[a].y - points[b].y);
  const halo = el("svg:circle", { r: radius + 6, fill: "none", "stroke-width": 2, visibility: "hidden", css: { stroke: "var(--accent)" } });
  made.svg.append(halo);
  const show = (i, px, py) => {
    now = i;
    const point = points[i], box = made.svg.getBoundingClientRect(), scale = box.width / made.width;
    halo.setAttribute("cx", made.sx(point.x)); halo.setAttribute("cy", made.sy(point.y)); halo.setAttribute("visibility", "visible");
    tip([el("strong", {}, named(point.each)), el("div", { class: "dim" }, point.each.sub), el("div", {}, `${title(yColumn)}: ${value(yColumn, point.cells[1])}`),
      xColumn ? el("div", {}, `${title(xColumn)}: ${value(xColumn, point.cells[0])}`) : el("div", {}, `${examples(point.each)} examples${point.each.weight !== null ? `, λ ${number(point.each.weight)}` : ""}`),
      ...(onFront.has(point.each.id) ? [el("div", {}, "on the Pareto front")] : [])], px ?? box.left + made.sx(point.x) * scale, py ?? box.top + made.sy(point.y) * scale);
  };
  const away = () => { now = -1; halo.setAttribute("visibility", "hidden"); hideTip(); };
  const nearest = (event) => {
    const box = made.svg.getBoundingClientRect(), scale = made.width / box.width, [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const far = points.map((p) => Math.hypot(made.sx(p.x) - px, made.sy(p.y) - py)), best = far.indexOf(Math.min(...far));
    return best >= 0 && far[best] < 26 ? best : -1;
  };
  const toggle = (i) => { const { each } = points[i]; choose(each, !each.runs.every((run) => state.chosen.has(run))); hideTip(); redraw(); };
  made.svg.addEventListener("pointermove", (event) => { const i = nearest(event); i >= 0 ? show(i, event.clientX, event.clientY) : away(); });
  made.svg.addEventListener("pointerleave", away);
  made.svg.addEventListener("blur", away);
  made.svg.addEventListener("click", (event) => { const i = nearest(event); if (i >= 0) toggle(i); });
  made.svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by && points.length) { event.preventDefault(); const next = order.indexOf(now) + by; show(order[now < 0 ? (by > 0 ? 0 : order.length - 1) : Math.max(0, Math.min(order.length - 1, next))]); }
    if (event.key === "Enter" && now >= 0) toggle(now);
    if (event.key === "Escape") away();
  });
  figure.append(made.svg);
}
// Names beside points, each at the first side where it covers no other name and no point.
function labels(made, points, wanted, radius) {
  const taken = points.length <= 120 ? points.map((p) => [made.sx(p.x) - radius, made.sy(p.y) - radius, made.sx(p.x) + radius, made.sy(p.y) + radius]) : [];
  for (const point of wanted) {
    const text = point.name, wide = 6.3 * text.length, [px, py] = [made.sx(point.x), made.sy(point.y)], gap = radius + 4;
    for (const [dx, dy] of [[gap, 4], [-gap - wide, 4], [-wide / 2, -gap - 2], [-wide / 2, gap + 11], [gap, -gap], [gap, gap + 9], [-gap - wide, -gap], [-gap - wide, gap + 9]]) {
      const box = [px + dx, py + dy - 10, px + dx + wide, py + dy + 3];
      const clear = box[0] > made.left && box[2] < made.width - 2 && box[1] > 0 && box[3] < made.height - made.bottom && taken.every((t) => box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3]);
      if (!clear) continue;
      taken.push(box);
      made.plane.append(el("svg:text", { class: "label", x: px + dx, y: py + dy }, text));
      break;
    }
  }
}
function drawTradeOff() {
  const host = $("trade-off"), list = filtered();
  host.replaceChildren();
  const shown = models().filter((m) => upright(m).length && list.some((each) => each.model === m && each.cells.length));
  if (!shown.length) { host.append(el("p", { class: "dim" }, "No run that passes the filter has scored answers to toxic prompts: there is nothing to trade off.")); return; }
  const pick = (key, options, none) => {
    const found = unique(options.map(keyOf)), now = found.includes(state[key]) ? state[key] : null;
    return el("select", { "data-axis": key, onchange: (event) => { state[key] = event.target.value; drawTradeOff(); } }, options.length ? [...new Map(options.map((column) => [keyOf(column), column])).values()].map((column) => el("option", { value: keyOf(column), selected: keyOf(column) === now }, title(column))) : el("option", {}, none));
  };
  const ys = shown.flatMap(upright), xs = shown.flatMap(across);
  const defaultY = upright(shown[0]).at(-1);
  if (!ys.some((column) => keyOf(column) === state.y)) state.y = keyOf(defaultY);
  if (!xs.some((column) => keyOf(column) === state.x)) {  // the first that any run here has beside that
    const there = (column) => list.some((each) => [keyOf(column), state.y].every((key) => (cell(each, key) || [null])[0] !== null));
    state.x = xs.length ? keyOf(xs.find(there) || xs[0]) : null;
  }
  host.append(el("div", { class: "tools" }, el("label", {}, "harm ", pick("y", ys, "")), el("label", {}, "against ", pick("x", xs, "nothing measured")),
    el("span", { class: "dim small" }, "Point at a mark for its values; click it to select it. Marks are ", $("together").checked ? "settings, seeds together." : "runs.")));
  const losses = unique(list.filter((each) => shown.includes(each.model) && each.cells.length).map((each) => each.loss));
  host.append(el("ul", { class: "legend" }, losses.map((loss) => { const { colour, mark } = lossStyle(loss); return el("li", {}, el("svg:svg", { width: 15, height: 15, viewBox: "-8 -8 16 16", "aria-hidden": "true" }, el("svg:path", { d: mark(4.8), css: { fill: colour } })), loss); }),
    el("li", { class: "dim" }, el("svg:svg", { width: 26, height: 10, "aria-hidden": "true" }, el("svg:path", { class: "front", d: "M1 5H25" })), "Pareto front")));
  for (const m of shown.slice(0, 12)) {
    const mine = list.filter((each) => each.model === m), panels = el("div", { class: "panels" });
    if (D.models.length > 1) host.append(el("h2", {}, D.models[m].name));
    host.append(panels);
    const yColumn = D.models[m].columns[at[m].get(state.y)] || upright(m).at(-1), xColumn = D.models[m].columns[at[m].get(state.x)] || across(m)[0];
    const withY = mine.map((each) => ({ each, y: cell(each, keyOf(yColumn)) })).filter(({ y }) => y && y[0] !== null);
    byToxic(panels, withY, yColumn);
    xColumn ? byOther(panels, withY, xColumn, yColumn) : panels.append(el("p", { class: "dim" }, "These runs have been asked nothing but toxic prompts: add a benchmark of seemingly toxic or safe ones, as xstest."));
  }
  if (shown.length > 12) host.append(el("p", { class: "dim" }, `And ${shown.length - 12} more models: choose one above.`));
}
const rateAxis = (column, values) => ({ ...(column.percent ? rates(values) : range(values)), label: axis(column) });
const ends = ([v, low, high]) => [v, low ?? v, high ?? v];

function byToxic(host, withY, yColumn) {
  const counted = withY.filter(({ each }) => examples(each) > 0), none = withY.filter(({ each }) => examples(each) === 0);
  if (!counted.length) return;
  const counts = unique(counted.map(({ each }) => examples(each))).sort((a, b) => a - b);
  const series = new Map();
  for (const { each, y } of counted) {
    const key = [each.loss, each.share === null ? "" : number(each.share), each.variant].join(" ");
    if (!series.has(key)) series.set(key, { each, at: new Map() });
    const of = series.get(key).at, x = examples(each);
    of.set(x, [...(of.get(x) || []), y[0]]);
  }
  const joined = [...series.values()].filter(({ at: of }) => of.size > 1), seen = new Map();
  const lines = joined.length <= 16 ? joined.map(({ each, at: of }) => {
    const nth = seen.get(each.loss) || 0;
    seen.set(each.loss, nth + 1);
    return { colour: lossStyle(each.loss).colour, dash: DASHES[nth % DASHES.length], points: [...of].sort(([a], [b]) => a - b).map(([x, ys]) => ({ x, y: ys.reduce((a, b) => a + b, 0) / ys.length })) };
  }) : [];
  const without = new Map();  // plain SFT, most often: a level to compare with
  for (const { each, y } of none) { const label = `${each.loss} ${each.variant}`.trim(); without.set(label, [...(without.get(label) || []), y[0]]); }
  const bands = [...without].slice(0, 3).map(([label, of]) => ({ label: `${label}, 0 rows`, y: of.reduce((a, b) => a + b, 0) / of.length }));
  // side by side where several losses share a count
  const losses = unique(counted.map(({ each }) => each.loss)), [from, to] = [counts[0] / 1.35, counts[counts.length - 1] * 1.35];
  const aside = (each) => losses.length > 1 ? (to / from) ** (0.05 * (losses.indexOf(each.loss) / (losses.length - 1) - 0.5)) : 1;
  const points = counted.map(({ each, y }) => ({ each, x: examples(each) * aside(each), y: y[0], cells: [null, y], name: "" }));
  scatter(host, { caption: `${title(yColumn)} by toxic examples`, points, yColumn, lines, bands, x: { low: from, high: to, log: true, ticks: counts, show: String, label: `toxic examples${counted.some(({ each }) => !each.toxic) ? " (or safe answers)" : ""}, log scale` },
    y: rateAxis(yColumn, [...counted, ...none].flatMap(({ y }) => ends(y))) });
  if (joined.length > 16) host.lastChild.append(el("p", { class: "dim small" }, `Lines join at most 16 series, and here are ${joined.length}: filter by loss or text to see them.`));
}
function byOther(host, withY, xColumn, yColumn) {
  const points = withY.map(({ each, y }) => ({ each, x: cell(each, keyOf(xColumn)), y })).filter(({ x }) => x && x[0] !== null).map(({ each, x, y }) => ({ each, x: x[0], y: y[0], cells: [x, y], name: each.title }));
  if (!points.length) { host.append(el("p", { class: "dim" }, `No run here has both ${title(xColumn)} and ${title(yColumn)}.`)); return; }
  const front = xColumn.better && yColumn.better ? pareto(points, xColumn.better === "low", yColumn.better === "low") : null;
  const few = points.length <= 40 ? (i) => points.flatMap((p) => ends(p.cells[i])) : (i) => points.map((p) => p.cells[i][0]);
  const wrap = el("div");
  host.append(wrap);
  scatter(wrap, { caption: `${title(yColumn)} against ${title(xColumn)}`, points, xColumn, yColumn, front, x: rateAxis(xColumn, few(0)), y: rateAxis(yColumn, few(1)) });
  if (!front) { wrap.append(el("p", { class: "dim small" }, `No front: whether a high or a low ${title(xColumn)} is better depends on who asks.`)); return; }
  const wanted = (column) => `${column.better} ${title(column)}`;
  wrap.append(el("p", { class: "small" }, el("span", { class: "dim" }, `Pareto front (${wanted(yColumn)}, ${wanted(xColumn)}), by x: `),
    front.slice(0, 20).map((p, i) => [i ? ", " : "", el("button", { class: "link front-name", onclick: () => details(p.each) }, p.name)]), front.length > 20 ? `, and ${front.length - 20} more` : "", ". ",
    el("button", { class: "link", onclick: () => { state.chosen.clear(); front.forEach((p) => choose(p.each, true)); redraw(); } }, "Select these")));
}

// ---- answers ---------------------------------------------------------------------------------------------------
const badge = (outcome) => el("span", { class: `badge ${["harmful", "helpful", "incoherent", "wrong"].includes(outcome) ? outcome : /refusal/.test(outcome) ? "refusal" : "other"}` }, outcome);
const folded = (label, draw) => {  // what it hides is not in the page until it is asked for
  const host = el("div", { class: "folded" });
  const close = () => host.replaceChildren(el("button", { class: "fold", "aria-expanded": "false", onclick: open }, `Show ${label}`));
  const open = () => host.replaceChildren(draw(), el("button", { class: "link small", "aria-expanded": "true", onclick: close }, "Fold away"));
  close();
  return host;
};
function drawAnswers() {
  const host = $("answers"), A = D.answers, names = Object.keys(A.benchmarks), look = styles();
  host.replaceChildren();
  if (!names.length) { host.append(el("p", { class: "dim" }, "No run has answers yet.")); return; }
  const all = [...look.keys()].sort((a, b) => a - b);
  const of = (name) => all.filter((run) => A.benchmarks[name].runs[run]);
  if (!names.includes(state.benchmark)) state.benchmark = names.find((name) => of(name).length) || names[0];
  const B = A.benchmarks[state.benchmark], runs = of(state.benchmark).slice(0, SIDES);
  const outcomes = unique(runs.flatMap((run) => B.runs[run].map((answer) => answer && jointOf(B, run, answer)))).filter(Boolean).sort();
  if (!["", "differ", ...outcomes].includes(state.outcome)) state.outcome = "";
  const option = (value, text, now) => el("option", { value, selected: value === now }, text);
  const master = el("input", { type: "checkbox", id: "unfold", onchange: (event) => { state.open = event.target.checked; drawAnswers(); $("unfold").focus(); } });
  master.checked = state.open;
  const sizes = B.of.length === 1 ? B.of[0] : `${B.of[0]}–${B.of[B.of.length - 1]}`;
  host.append(el("div", { class: "tools" },
    el("label", {}, "benchmark ", el("select", { id: "benchmark", onchange: (event) => { state.benchmark = event.target.value; drawAnswers(); } }, names.map((name) => option(name, `${name} (${A.benchmarks[name].kind === "seeming" ? "seemingly toxic" : A.benchmarks[name].kind})`, state.benchmark)))),
    el("label", {}, "show ", el("select", { id: "outcome", onchange: (event) => { state.outcome = event.target.value; drawAnswers(); } }, option("", "all prompts", state.outcome), runs.length > 1 ? option("differ", "where runs differ", state.outcome) : null, outcomes.map((name) => option(name, `with an answer ${name}`, state.outcome)))),
    el("label", { class: "check" }, master, " unfold harmful text")),
    el("p", { class: "dim small", id: "sampled" }, `A sample: ${B.prompts.length} of ${sizes} prompts, the same for every run. `, of(state.benchmark).length > SIDES ? `The first ${SIDES} of ${of(state.benchmark).length} selected runs stand side by side.` : ""));
  if (!runs.length) { host.append(el("p", { class: "dim" }, all.length ? "None of the selected runs has answers to this benchmark." : "Select runs in the table: their answers stand here, side by side.")); return; }
  const toxic = B.kind === "toxic";
  let drawn = 0;
  B.prompts.forEach((prompt, i) => {
    const given = runs.map((run) => B.runs[run][i]), ends = given.map((answer, j) => answer && jointOf(B, runs[j], answer));
    if (state.outcome === "differ" ? unique(ends).length < 2 : state.outcome && !ends.includes(state.outcome)) return;
    drawn += 1;
    const said = () => el("span", { class: "asked" }, prompt);
    host.append(el("article", { class: "prompt" }, el("h3", {}, el("span", { class: "number" }, `${i + 1}`), toxic && !state.open ? folded("the toxic prompt", said) : said()),
      el("div", { class: "sides" }, given.map((answer, j) => shownAnswer(B, runs[j], answer, toxic, look)))));
  });
  if (!drawn) host.append(el("p", { class: "dim" }, "No prompt of the sample is like that."));
}
function jointOf(B, run, answer) {
  const i = D.answers.words[B.judges[run]].indexOf("joint");
  return i < 0 ? null : D.answers.words[answer[1][i]];
}
function shownAnswer(B, run, answer, toxic, look) {
  const head = el("div", { class: "who" }, swatch(look.get(run)), named(RUNS[run]));
  if (!answer) return el("div", { class: "answer" }, head, el("p", { class: "dim" }, "not asked"));
  const [text, verdicts, harmful, truncated, missing] = answer, W = D.answers.words, judges = W[B.judges[run]];
  const joint = jointOf(B, run, answer), each = judges.map((judge, i) => judge === "joint" ? null : `${judge}: ${W[verdicts[i]] ?? "–"}`).filter(Boolean);
  const said = () => el("p", { class: "said" }, D.answers.texts[text] || "(nothing)", missing ? el("span", { class: "dim" }, ` … and ${missing} characters more`) : null);
  return el("div", { class: "answer" }, head, joint ? badge(joint) : null, el("span", { class: "verdicts" }, each.join(" · ") || "not judged", truncated ? " · cut off by its limit" : ""),
    (toxic || harmful) && !state.open ? folded("the answer", said) : said());
}

// ---- about -----------------------------------------------------------------------------------------------------
function drawAbout() {
  const host = $("about"), tally = (of) => { const found = new Map(); for (const run of D.runs) for (const each of of(run)) found.set(each, (found.get(each) || 0) + 1); return [...found].sort((a, b) => b[1] - a[1]); };
  const said = (run) => D.shared[run.environment] || {};
  const table = (head, rows) => el("div", { class: "table" }, el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", {}, name)))), el("tbody", {}, rows.map((row) => el("tr", {}, row.map((each) => el("td", {}, String(each))))))));
  const licences = tally((run) => Object.entries(said(run).data || {}).map(([kind, [, licence]]) => JSON.stringify([kind.replaceAll("_", " "), licence || "none named"]))).map(([key, n]) => [...JSON.parse(key), n]);
  const made = tally((run) => [JSON.stringify([run.commit || "not known", said(run).versions ? [`python ${said(run).python}`, ...Object.entries(said(run).versions).map((pair) => pair.join(" "))].join(", ") : "not known", said(run).device || "–", said(run).world_size ?? "–"])]).map(([key, n]) => [...JSON.parse(key), n]);
  host.replaceChildren(
    ...D.models.filter((model) => model.notes.length).flatMap((model) => [el("h2", {}, several ? `Notes on ${model.name}` : "Notes"), el("ul", {}, model.notes.map((note) => el("li", {}, note)))]),
    el("h2", {}, "This page"), el("ul", {}, D.notes.map((note) => el("li", {}, note))),
    el("h2", {}, "Licences of the training data"), licences.length ? table(["part", "licence", "runs"], licences) : el("p", { class: "dim" }, "No run says."),
    el("h2", {}, "Made with"), table(["commit", "versions", "device", "world size", "runs"], made),
    el("h2", {}, "Commands of the selected runs"), ...commands());
  host.querySelectorAll(".table td:nth-child(2)").forEach((td) => { td.style.whiteSpace = "normal"; });
}
function commands() {
  const text = [...state.chosen].sort((a, b) => a - b).map((run) => D.runs[run].command).filter(Boolean).join("\n");
  if (!text) return [el("p", { class: "dim" }, "Select runs in the table.")];
  const button = el("button", { onclick: () => copy(text, button) }, "Copy all");
  return [el("pre", { class: "commands" }, text), button];
}

// ---- the page --------------------------------------------------------------------------------------------------
const DRAW = { runs: drawRuns, "trade-off": drawTradeOff, curves: drawCurves, answers: drawAnswers, about: drawAbout };
const fresh = new Set();
function stale() { fresh.clear(); fresh.add(state.view); }
function redraw() {
  fresh.clear();
  const list = filtered(), noun = $("together").checked ? "setting" : "run";
  $("count").textContent = list.length === items().length ? count(list.length, noun) : `${list.length} of ${count(items().length, noun)}`;
  drawSelection();
  show(state.view, false);
}
function show(view, focus = true) {
  state.view = view;
  hideTip();
  for (const name of Object.keys(VIEWS)) {
    $(name).hidden = name !== view;
    const tab = $(`tab-${name}`);
    tab.setAttribute("aria-selected", String(name === view));
    tab.tabIndex = name === view ? 0 : -1;
    if (name === view && focus) tab.focus();
  }
  $("filters").hidden = !["runs", "trade-off"].includes(view);
  $("selection").hidden = view === "about";
  if (!fresh.has(view)) { DRAW[view](); fresh.add(view); }
  const hash = `#view=${view}`;  // the name of no element: the browser would scroll to it
  if (location.hash !== hash) history.replaceState(null, "", hash);
}
function firstChoice() {  // what is compared before anybody has said what
  if (D.runs.length <= 6) return RUNS.filter((each) => each.state === "finished");
  for (const [m] of D.models.entries()) {
    const y = upright(m).at(-1), x = across(m)[0];
    if (!y || !x || !x.better) continue;
    const points = RUNS.filter((each) => each.model === m && cell(each, keyOf(y)) && cell(each, keyOf(x))).map((each) => ({ each, x: cell(each, keyOf(x))[0], y: cell(each, keyOf(y))[0] })).filter((p) => p.x !== null && p.y !== null);
    const plain = RUNS.find((each) => each.model === m && each.loss === "sft" && each.state === "finished");
    if (points.length) return unique([...plain ? [plain] : [], ...pareto(points, x.better === "low", y.better === "low").map((p) => p.each)]).slice(0, 6);
  }
  return RUNS.slice(0, 3);
}
function start() {
  document.title = `tasft: ${D.title}`;
  $("title").textContent = D.title;
  const unfinished = D.runs.filter((run) => run.state === "unfinished").length;
  $("summary").textContent = [count(D.runs.length, "run") + (unfinished ? ` (${unfinished} unfinished)` : ""), several ? count(D.models.length, "model") : D.models[0]?.name, unique(D.runs.map((run) => run.loss)).length > 1 ? count(unique(D.runs.map((run) => run.loss)).length, "loss").replace("losss", "losses") : null, count(SETTINGS.length, "setting")].filter(Boolean).join(" · ");
  document.querySelector("nav").append(...Object.entries(VIEWS).map(([name, text]) => el("button", { role: "tab", id: `tab-${name}`, "aria-controls": name, onclick: () => show(name) }, text)));
  document.querySelector("nav").addEventListener("keydown", (event) => {
    const names = Object.keys(VIEWS), i = names.indexOf(state.view);
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to !== undefined) { event.preventDefault(); show(names[(to + names.length) % names.length]); }
  });
  const fill = (id, options) => { $(id).append(el("option", { value: "" }, "all"), ...options.map(([value, text]) => el("option", { value }, String(text)))); $(id).closest("label").hidden = options.length < 2; };
  fill("model", D.models.map((model, i) => [i, model.name]));
  fill("loss", unique(D.runs.map((run) => run.loss)).sort().map((loss) => [loss, loss]));
  fill("toxic", unique(D.runs.map((run) => run.toxic)).sort((a, b) => a - b).map((n) => [n, n]));
  $("together").closest("label").hidden = SETTINGS.length === RUNS.length;
  let waiting;
  $("text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 120); });
  for (const id of ["model", "loss", "toxic", "together"]) $(id).addEventListener("change", redraw);
  for (const column of columns()) if (column.part === "outcomes") state.parts.add("outcomes");
  const others = unique(columns().filter((column) => column.part === "scores and tasks").map((column) => column.key));
  if (!state.parts.size || others.length <= 6) state.parts.add("scores and tasks");
  firstChoice().forEach((each) => choose(each, true));
  let wide = innerWidth;
  addEventListener("resize", () => { if (Math.abs(innerWidth - wide) > 20) { wide = innerWidth; clearTimeout(waiting); waiting = setTimeout(redraw, 150); } });
  const asked = () => location.hash.replace("#view=", "");
  addEventListener("hashchange", () => { if (VIEWS[asked()] && asked() !== state.view) show(asked()); });
  if (VIEWS[asked()]) state.view = asked();
  redraw();
}
start();
})();

"use strict";
// The rows of the table are in the page; this sorts, filters, draws and counts.
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const records = data.records;
const body = byId("table").tBodies[0];
const rows = [...body.rows];
const number = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
const percent = (part, whole) => `${part} of ${whole}` + (whole ? ` (${((100 * part) / whole).toFixed(1)} %)` : "");

function make(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function html(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Pictures: a photo, the colors of its anomaly map, the contour of the threshold, boxes and the true outline, in one
// drawing in pixels of the image, so that the aspect ratio is always the true one.

const middle = data.colors.length >> 1;
const pictureOf = (i) => JSON.parse(byId(`picture-${i}`).textContent);

function drawing(i, layers) {
  const picture = pictureOf(i);
  const [width, height] = picture.size;
  const [left, top, viewWidth, viewHeight] = picture.view;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, class: "image", role: "img" });
  svg.setAttribute("aria-label", `${records[i].name}: ${records[i].verdict}, ${records[i].n} regions`);
  const image = (kind, file, x, y, w, h) =>
    svg.append(make("image", { href: `data:image/${kind};base64,${file}`, x, y, width: w, height: h, preserveAspectRatio: "none" }));
  image("jpeg", picture.photo, 0, 0, width, height);
  if (layers.heat && picture.heat) image("png", picture.heat, left, top, viewWidth, viewHeight);
  if (layers.truth && picture.truth) {
    svg.append(make("path", { d: picture.truth, class: "truth-back" }), make("path", { d: picture.truth, class: "front truth" }));
  }
  if (layers.contour && picture.contour) {
    const line = make("path", { d: picture.contour, class: "front", stroke: data.colors[middle] });
    svg.append(make("path", { d: picture.contour, class: "back" }), line);
  }
  for (const region of layers.boxes ? records[i].regions : []) {
    const [x, y, w, h] = region.box;
    for (const kind of ["box-back", "front box"]) svg.append(make("rect", { x, y, width: w, height: h, class: kind }));
  }
  return svg;
}

const indexOf = new Map(rows.map((row, i) => [row, i]));
const openerOf = (row) => row.cells[0].firstElementChild;

function fill(row) {
  const button = openerOf(row);
  if (!button.firstChild) button.append(drawing(indexOf.get(row), { heat: true, contour: true }));
}

const nearby = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) fill(entry.target);
      else if (rows.length > 200) openerOf(entry.target).replaceChildren(); // decoded pictures take memory
    }
  },
  { rootMargin: "600px" },
);
rows.forEach((row) => nearby.observe(row));

// Sorting and filters

const compareNames = new Intl.Collator(undefined, { numeric: true }).compare;
const verdicts = ["anomalous", "unsure", "normal"];
const compare = {
  name: (a, b) => compareNames(a.name, b.name),
  verdict: (a, b) => verdicts.indexOf(a.verdict) - verdicts.indexOf(b.verdict) || a.margin - b.margin,
  margin: (a, b) => a.margin - b.margin,
  p: (a, b) => a.p - b.p || a.margin - b.margin,
  n: (a, b) => a.n - b.n || a.margin - b.margin,
  defective: (a, b) => b.defective - a.defective || a.margin - b.margin,
};
let order = records.map((_, i) => i);
let threshold = 0;

const isFlagged = (record) => record.margin < threshold;
const filters = {
  all: () => true,
  flagged: isFlagged,
  "not normal": (record) => record.verdict !== "normal",
  "false alarms": (record) => isFlagged(record) && !record.defective,
  misses: (record) => !isFlagged(record) && record.defective,
  defective: (record) => record.defective,
  good: (record) => !record.defective,
};

function sortBy(button) {
  const head = button.parentElement;
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const by = compare[button.dataset.key];
  order = records.map((_, i) => i).sort((a, b) => (descending ? -1 : 1) * by(records[a], records[b]) || a - b);
  body.append(...order.map((i) => rows[i]));
}

function filter() {
  const words = byId("search").value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const chosen = byId("show").value;
  const isShown = filters[chosen] ?? ((record) => record.verdict === chosen);
  let n = 0;
  rows.forEach((row, i) => {
    const name = records[i].name.toLocaleLowerCase();
    row.hidden = !(isShown(records[i]) && words.every((word) => name.includes(word)));
    n += !row.hidden;
  });
  byId("shown").textContent = `${n} of ${rows.length} shown`;
  byId("none").hidden = n > 0;
}

byId("table").tHead.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) sortBy(button);
});
byId("search").addEventListener("input", filter);
byId("show").addEventListener("change", filter);

// The chart: counts of margins on an axis that is linear around 0 and logarithmic far from it

const margins = records.map((record) => record.margin);
const training = data.training ?? [];
const sizes = [...margins, ...training].map(Math.abs).sort((a, b) => a - b);
const usual = training.map(Math.abs).sort((a, b) => a - b);
const unit = (usual.length ? usual : sizes)[(usual.length ? usual : sizes).length >> 1] || 1;
const place = (margin) => Math.asinh(margin / unit);
const marginAt = (at) => unit * Math.sinh(at);
const EDGE = 8; // half of the slider's thumb, so that it stands below its line
let first = Math.min(0, ...margins.map(place), ...training.map(place));
let last = Math.max(0, place(data.unsure ?? 0), ...margins.map(place), ...training.map(place));
if (last - first < 1e-9) [first, last] = [-1, 1];
const room = 0.03 * (last - first);
first -= room;
last += room;

const kinds = data.known
  ? [["good", "bar-normal", (r) => !r.defective], ["defective", "bar-anomalous", (r) => r.defective]]
  : [...verdicts].reverse().map((verdict) => [verdict, `bar-${verdict}`, (r) => r.verdict === verdict]);
let chosenLine;
let across;

function drawChart(wide = byId("chart").clientWidth) {
  const width = Math.max(260, wide);
  const [top, bottom, height] = [22, 190, training.length ? 244 : 214];
  across = (margin) => EDGE + ((place(margin) - first) / (last - first)) * (width - 2 * EDGE);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", "Number of images by margin, with the detector's threshold at 0");
  const size = (last - first) / Math.min(70, Math.max(16, Math.floor(width / 13)));
  const bins = new Map();
  for (const record of records) {
    const bin = Math.floor(place(record.margin) / size); // 0 is between two bins
    if (!bins.has(bin)) bins.set(bin, kinds.map(() => 0));
    bins.get(bin)[kinds.findIndex(([, , belongs]) => belongs(record))] += 1;
  }
  const most = Math.max(1, ...[...bins.values()].map((counts) => counts.reduce((a, b) => a + b)));
  const up = (count) => bottom - ((bottom - top) * count) / most;
  if (data.unsure > 0) {
    const [left, right] = [across(0), across(data.unsure)];
    svg.append(make("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "band" }));
  }
  for (const [bin, counts] of bins) {
    const x = across(marginAt(bin * size));
    const wide = Math.max(1, across(marginAt((bin + 1) * size)) - x - 1);
    let below = 0;
    counts.forEach((count, k) => {
      if (!count) return;
      const bar = { x, y: up(below + count), width: wide, height: up(below) - up(below + count), class: kinds[k][1] };
      const range = `${number(marginAt(bin * size))} to ${number(marginAt((bin + 1) * size))}`;
      svg.append(make("rect", bar, make("title", {}, `${count} ${kinds[k][0]}, margin ${range}`)));
      below += count;
    });
  }
  svg.append(make("line", { x1: 0, x2: width, y1: bottom, y2: bottom, class: "axis" }));
  svg.append(make("text", { x: EDGE, y: 12 }, `most in a bar: ${most}`));
  const line = (at, kind) => make("line", { x1: at, x2: at, y1: top - 4, y2: bottom + 5, class: kind });
  svg.append(line(across(0), "zero"));
  const right = across(0) > width - 130;
  const label = { x: across(0) + (right ? -5 : 5), y: 12, class: "strong", "text-anchor": right ? "end" : "start" };
  if (across(0) > 140) svg.append(make("text", label, "threshold"));
  let end = -Infinity;
  const steps = [1, 2, 5].flatMap((digit) => [-3, -2, -1, 0, 1, 2, 3, 4].map((power) => digit * 10 ** power));
  const ticks = [0, ...steps.sort((a, b) => b - a).flatMap((step) => [step, -step])].filter(
    (tick) => place(tick) > first + room && place(tick) < last - room,
  );
  const taken = [];
  for (const tick of ticks) {
    const at = across(tick);
    if (taken.some((other) => Math.abs(other - at) < 42)) continue;
    taken.push(at);
    svg.append(make("text", { x: at, y: bottom + 19, "text-anchor": "middle" }, number(tick)));
    svg.append(make("line", { x1: at, x2: at, y1: bottom, y2: bottom + 5, class: "axis" }));
  }
  if (training.length) {
    const marks = training.map((margin) => `M${across(margin).toFixed(1)},${height - 14}v12`).join("");
    svg.append(make("path", { d: marks, class: "fit" }));
  }
  chosenLine = line(across(threshold), "chosen");
  svg.append(chosenLine);
  const key = html("div", { className: "key" });
  const keyed = (mark, words) => key.append(html("span", {}, make("svg", { viewBox: "0 0 12 12" }, mark), ` ${words}`));
  for (const [words, kind] of kinds) keyed(make("rect", { width: 12, height: 12, class: kind }), words);
  if (data.unsure > 0) keyed(make("rect", { width: 12, height: 12, class: "band" }), `unsure: 0 to ${number(data.unsure)}`);
  if (training.length) keyed(make("path", { d: "M3,0v12M8,0v12", class: "fit" }), "training images, as if they were new");
  key.append(html("span", {}, "◂ more anomalous · margin · more normal ▸"));
  byId("chart").replaceChildren(svg, key);
}

// The threshold that can be moved

function count() {
  const flagged = records.filter(isFlagged).length;
  const parts = [["flagged", "Flagged", percent(flagged, records.length), "images"]];
  if (data.known) {
    const good = records.filter((record) => !record.defective);
    const defective = records.filter((record) => record.defective);
    const missed = defective.filter((record) => !isFlagged(record)).length;
    parts.push(["false-alarms", "False alarms", percent(good.filter(isFlagged).length, good.length), "good"]);
    parts.push(["misses", "Misses", percent(missed, defective.length), "defective"]);
  }
  if (training.length) {
    const rare = training.filter((margin) => margin < threshold).length;
    parts.push(["training-flagged", "Of the training images, as if they were new", percent(rare, training.length), ""]);
  }
  byId("counts").replaceChildren(
    ...parts.map(([id, words, text]) => html("span", {}, `${words}: `, html("strong", { id }, text))),
  );
  const own = threshold === 0;
  byId("chosen").textContent = own
    ? "Counted at margin 0, the detector's own threshold."
    : `Counted at margin ${number(threshold)}: decision_function(images) < ${Number(threshold.toPrecision(6))}`;
  byId("reset").hidden = own;
  byId("threshold").setAttribute("aria-valuetext", `margin ${number(threshold)}`);
  for (const end of ["x1", "x2"]) chosenLine.setAttribute(end, across(threshold));
  chosenLine.setAttribute("visibility", own ? "hidden" : "visible");
}

function choose(margin) {
  threshold = margin;
  count();
  if (["flagged", "false alarms", "misses"].includes(byId("show").value)) filter();
}

const slider = byId("threshold");
const toSlider = () => (slider.value = Math.round((1000 * (place(0) - first)) / (last - first)));
slider.addEventListener("input", () => choose(marginAt(first + ((last - first) * slider.value) / 1000)));
byId("reset").addEventListener("click", () => {
  toSlider();
  choose(0);
  slider.focus();
});

// The viewer

const viewer = byId("viewer");
const boxes = [...viewer.querySelectorAll("input")];
let current = 0;

function draw() {
  const layers = Object.fromEntries(boxes.map((box) => [box.dataset.layer, box.checked]));
  byId("drawing").replaceChildren(drawing(current, layers));
}

function show(i) {
  current = i;
  const record = records[i];
  const shown = order.filter((k) => !rows[k].hidden);
  const at = shown.indexOf(i);
  byId("viewer-name").textContent = record.name;
  const verdict = html("span", { className: `verdict ${record.verdict}` }, record.verdict);
  const truth = data.known ? ` The part is ${record.defective ? "defective" : "good"}.` : "";
  byId("facts").replaceChildren(verdict, html("br"), `Margin ${number(record.margin)}, p-value ${number(record.p)}.${truth}`);
  byId("position").textContent = `${at + 1} of ${shown.length}`;
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at >= shown.length - 1;
  const table = html("table");
  const line = (kind, cells) => html("tr", {}, ...cells.map((cell) => html(kind, {}, cell)));
  table.append(html("thead", {}, line("th", ["x, y", "width × height", "pixels", "value"])));
  table.append(html("tbody", {}, ...record.regions.map(({ box, area, score }) =>
    line("td", [`${box[0]}, ${box[1]}`, `${box[2]} × ${box[3]}`, String(area), score.toFixed(2)]))));
  const more = record.n > record.regions.length ? ` The ${record.regions.length} most anomalous:` : "";
  const title = html("p", {}, html("strong", {}, record.n === 1 ? "1 region" : `${record.n} regions`), more);
  byId("regions").replaceChildren(title, ...(record.n ? [table] : []));
  draw();
}

function step(by) {
  const shown = order.filter((k) => !rows[k].hidden);
  const next = shown[shown.indexOf(current) + by];
  if (next !== undefined) show(next);
}

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!event.target.closest(".picture")) return;
  show(indexOf.get(row));
  viewer.showModal();
});
body.addEventListener("keydown", (event) => {
  if (!["ArrowDown", "ArrowUp"].includes(event.key) || !event.target.closest(".picture")) return;
  const shown = order.filter((k) => !rows[k].hidden);
  const next = shown[shown.indexOf(indexOf.get(event.target.closest("tr"))) + (event.key === "ArrowDown" ? 1 : -1)];
  if (next === undefined) return;
  event.preventDefault();
  openerOf(rows[next]).focus();
});
viewer.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer && event.detail) {
    const { left, right, top, bottom } = viewer.getBoundingClientRect();
    const inside = event.clientX >= left && event.clientX <= right && event.clientY >= top && event.clientY <= bottom;
    if (!inside) viewer.close();
  }
});
viewer.addEventListener("close", () => {
  const row = rows[current];
  if (!row.hidden) openerOf(row).focus(); // the image that was looked at last
});
byId("close").addEventListener("click", () => viewer.close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
boxes.forEach((box) => box.addEventListener("change", draw));

function drawLegend() {
  const gradient = make("linearGradient", { id: "scale" });
  data.colors.forEach((color, i) => {
    gradient.append(make("stop", { offset: i / (data.colors.length - 1), "stop-color": color }));
  });
  const bar = make("rect", { x: 0, y: 2, width: 280, height: 14, fill: "url(#scale)" });
  const tick = make("path", { d: "M140,0v20", stroke: "currentColor", "stroke-width": 2 });
  const words = [[0, "start", "normal"], [140, "middle", `threshold ${number(data.mapThreshold)}`], [280, "end", "anomalous"]];
  const texts = words.map(([x, anchor, text]) => make("text", { x, y: 33, "text-anchor": anchor }, text));
  byId("legend").replaceChildren(make("svg", { viewBox: "0 0 280 40", "aria-hidden": "true" }, make("defs", {}, gradient), bar, tick, ...texts));
}

// Printing: pictures of the rows that are shown, decoded before the print begins

window.addEventListener("beforeprint", () => {
  drawChart(720); // else its text would shrink with it
  count();
  rows.forEach((row) => row.hidden || fill(row));
});
window.addEventListener("afterprint", redraw);
byId("print").addEventListener("click", async () => {
  const shown = rows.filter((row) => !row.hidden);
  shown.forEach(fill);
  const pictures = shown.flatMap((row) => [...row.querySelectorAll("image")]);
  await Promise.allSettled(pictures.map((picture) => picture.decode?.()));
  window.print();
});

byId("threshold").hidden = records.length === 0;
viewer.querySelector(".of-truth").hidden = !data.masks;
function redraw() {
  drawChart();
  count();
}

new ResizeObserver(redraw).observe(byId("chart"));
redraw();
toSlider();
filter();
drawLegend();

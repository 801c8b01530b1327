// Elements, tables and pictures from plain values. Text stays text: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((each) => each != null));
  return made;
}

export function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; count >= 1024 && at < units.length - 1; at += 1) count /= 1024;
  return `${count.toFixed(at && count < 10 ? 1 : 0)} ${units[at]}`;
};
export const count = (value) => Math.round(value).toLocaleString("en");
export const percent = (part, whole) => (whole > 0 ? `${((100 * part) / whole).toFixed(part && part < whole / 10 ? 1 : 0)} %` : "–");
export const seconds = (value) => (value == null ? "–" : value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(1)} s`);

export function tiles(pairs) {
  return element("dl", { class: "tiles" }, ...pairs.map(([name, value, more]) =>
    element("div", { class: "tile" }, element("dt", {}, name), element("dd", {}, String(value), more ? element("small", {}, ` ${more}`) : null))));
}

export function table(heads, rows, label) {
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell instanceof Node ? cell : String(cell))))))));
}

export function figure(title, picture, names = []) {
  return element("figure", {},
    element("figcaption", {}, element("span", {}, title), ...names.map(([name, colour]) => element("span", {}, element("i", { class: `f${colour}` }), name))), picture);
}

const TALL = 200;
const SIDE_BY_SIDE = 780;
const LEFT = 44;
const LOW = 22;

// Pixels across a figure, so that letters keep their size: of the whole page, or of half of it where two stand side by side.
function room(whole) {
  const inner = Math.min(innerWidth, 1152) - (innerWidth > 640 ? 48 : 24);
  return (whole || inner < SIDE_BY_SIDE ? inner : (inner - 12) / 2) - 30;
}

function ticks(low, high, most = 5) {
  const rough = (high - low) / (most - 1);
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * base).find((each) => (high - low) / each <= most);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(10)));
  return found;
}

function frame(label, across, up, whole = false) {
  const width = room(whole);
  const wide = (range) => (range[1] > range[0] ? range : [range[0] - 0.5, range[0] + 0.5]);
  const [x0, x1] = wide(across);
  const [y0, y1] = wide(up);
  const x = (value) => LEFT + ((value - x0) / (x1 - x0)) * (width - LEFT - 10);
  const y = (value) => 8 + ((y1 - value) / (y1 - y0)) * (TALL - LOW - 8);
  const picture = shape("svg", { class: "chart", viewBox: `0 0 ${width} ${TALL}`, role: "img", "aria-label": label });
  for (const value of ticks(y0, y1)) {
    picture.append(shape("line", { class: "axis", x1: LEFT, x2: width - 10, y1: y(value), y2: y(value) }),
      shape("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const value of ticks(x0, x1)) picture.append(shape("text", { x: x(value), y: TALL - 6, "text-anchor": "middle" }, String(value)));
  return { picture, x, y, width };
}

// curves: [{points: [[x, y], …], colour, dots}]
export function lines(label, curves, { from = null, to = null, whole = false } = {}) {
  const all = curves.flatMap((curve) => curve.points).filter(([, y]) => Number.isFinite(y));
  if (!all.length) return element("p", { class: "about" }, "Nothing yet.");
  const range = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const ys = range(all.map(([, y]) => y));
  const { picture, x, y } = frame(label, range(all.map(([x]) => x)), [from ?? ys[0], to ?? ys[1]], whole);
  for (const { points, colour, dots } of curves) {
    const good = points.filter(([, value]) => Number.isFinite(value));
    if (dots || good.length === 1) good.forEach(([a, b]) => picture.append(shape("circle", { class: `f${colour}`, cx: x(a), cy: y(b), r: 3 })));
    else picture.append(shape("polyline", { class: `curve c${colour}`, points: good.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }));
  }
  return picture;
}

// A column per name, its value below it; what the colours mean is in the figure's title.
export function columns(label, pairs) {
  const most = Math.max(...pairs.map(([, value]) => value), 1);
  const { picture, y, width } = frame(label, [0, 1], [0, most]);
  picture.querySelectorAll("text[text-anchor=middle]").forEach((each) => each.remove());
  const share = (width - LEFT - 10) / pairs.length;
  pairs.forEach(([name, value, colour = 0], place) => {
    const left = LEFT + place * share;
    picture.append(shape("rect", { class: `f${colour}`, x: left + (share - Math.min(share * 0.7, 60)) / 2, width: Math.min(share * 0.7, 60), y: y(value), height: y(0) - y(value), rx: 2 }, shape("title", {}, `${name}: ${value}`)),
      shape("text", { x: left + share / 2, y: TALL - 6, "text-anchor": "middle" }, count(value)));
  });
  return picture;
}

// bars: [engine, group, from, to]; a lane per engine, rows within it so that none cover each other.
export function timeline(label, engines, bars, until) {
  const lane = 64;
  const [width, tall] = [room(true), engines * (lane + 8) + 24];
  const picture = shape("svg", { viewBox: `0 0 ${width} ${tall}`, role: "img", "aria-label": label });
  const x = (value) => 60 + (value / Math.max(until, 1e-9)) * (width - 80);
  for (let engine = 0; engine < engines; engine += 1) {
    const top = engine * (lane + 8);
    const mine = bars.filter((bar) => bar[0] === engine).sort((a, b) => a[2] - b[2]);
    const free = [];
    const rows = mine.map(([, , from, to]) => {
      let row = free.findIndex((end) => end <= from + 1e-6);
      if (row < 0) row = free.push(0) - 1;
      free[row] = to;
      return row;
    });
    const thick = lane / Math.max(free.length, 1);
    picture.append(shape("text", { x: 0, y: top + lane / 2 + 4 }, `engine ${engine}`), shape("line", { class: "axis", x1: 60, x2: width - 20, y1: top + lane + 2, y2: top + lane + 2 }));
    mine.forEach(([, group, from, to], place) => picture.append(shape("rect", { class: `f${group % 6}`, x: x(from).toFixed(1), y: (top + rows[place] * thick).toFixed(1), width: Math.max(x(to) - x(from), 0.6).toFixed(1), height: (thick * 0.86).toFixed(2), rx: 1 },
      shape("title", {}, `group ${group}: ${from.toFixed(2)} to ${to.toFixed(2)} s`))));
  }
  for (const value of ticks(0, Math.max(until, 1e-3), width < 500 ? 4 : 8)) picture.append(shape("text", { x: x(value), y: tall - 4, "text-anchor": "middle" }, `${value} s`));
  return picture;
}

// The graph of distances: a point per slope, a line per pair, dark where the distance is the least.
export function distances(label, names, colours, matrix) {
  const picture = shape("svg", { class: "chart", viewBox: "-150 -130 300 260", role: "img", "aria-label": label });
  const places = names.map((_, i) => [105 * Math.sin((2 * Math.PI * i) / names.length), -105 * Math.cos((2 * Math.PI * i) / names.length)]);
  const pairs = matrix.flatMap((row, i) => row.slice(0, i).map((distance, j) => [i, j, distance]));
  const few = names.length <= 6;
  const least = pairs.length ? Math.min(...pairs.map(([, , distance]) => distance)) : 0;
  for (const [i, j, distance] of pairs) {
    const near = distance === least;
    picture.append(shape("line", { class: near ? "c0" : "axis", "stroke-width": near ? 1.6 : 0.7, x1: places[i][0], y1: places[i][1], x2: places[j][0], y2: places[j][1] }, shape("title", {}, `Δ(${names[i]}, ${names[j]}) = ${distance}`)));
    if (few) picture.append(shape("text", { x: 0.6 * places[i][0] + 0.4 * places[j][0], y: 0.6 * places[i][1] + 0.4 * places[j][1], "text-anchor": "middle", class: "tiny" }, String(distance)));
  }
  names.forEach((name, i) => picture.append(shape("circle", { class: `f${colours[i]}`, cx: places[i][0], cy: places[i][1], r: 6 }),
    shape("text", { x: places[i][0] * 1.14, y: places[i][1] * 1.14 + 3, "text-anchor": "middle", class: "tiny" }, name)));
  return picture;
}

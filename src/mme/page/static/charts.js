// Small line charts over time, as SVG.
import { el } from "./dom.js";

const SPACE = "http://www.w3.org/2000/svg";
const HEIGHT = 120, LEFT = 56, RIGHT = 6, TOP = 8, BOTTOM = 18;

function svg(tag, attributes, text) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** A round number that is no less than `value`; of things that are counted, one whose half is whole, too. */
function above(value, counted) {
  if (!(value > 0)) return counted ? 2 : 1;
  const size = 10 ** Math.max(counted ? 0 : -Infinity, Math.floor(Math.log10(value)));
  return (counted ? [2, 4, 10] : [1, 2, 2.5, 5, 10]).map((m) => m * size).find((candidate) => candidate >= value * 0.9999);
}

/**
 * A chart: `series` are {name, points: [[ms, value or null], ...]}; `show` writes a value; `top` is the least that the
 * scale reaches, and with `counted` it has whole numbers alone. A gap in the values is a gap in the line. `width` is
 * that of the picture in pixels: letters keep their size, however wide the card is.
 */
export function chart(width, title, series, show, top = 0, counted = false) {
  const drawn = series.filter((one) => one.points.some(([, value]) => value !== null));
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const latest = drawn.map((one) => `${one.name}: ${show(last(one.points))}`).join(", ");
  picture.append(svg("title", {}, `${title}. ${latest || "Nothing was reported."}`));
  const box = el("div", { className: "chart" }, el("h2", { textContent: title }), picture);
  if (!drawn.length) {
    picture.append(svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "none" }, "nothing reported yet"));
    return box;
  }
  const all = drawn.flatMap((one) => one.points);
  const first = Math.min(...drawn.map((one) => one.points[0][0]));
  const end = Math.max(...drawn.map((one) => one.points[one.points.length - 1][0]), first + 1000);
  const high = above(Math.max(top, ...all.map(([, value]) => value ?? 0)), counted);
  const x = (ms) => LEFT + ((ms - first) / (end - first)) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / high) * (HEIGHT - TOP - BOTTOM);
  for (const share of [0, 0.5, 1]) {
    const at = y(share * high);
    picture.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: "grid" }));
    picture.append(svg("text", { x: LEFT - 5, y: at + 4, "text-anchor": "end" }, show(share * high)));
  }
  const label = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false, ...(end - first < 600e3 && { second: "2-digit" }) });
  picture.append(svg("text", { x: LEFT, y: HEIGHT - 4 }, label(first)));
  picture.append(svg("text", { x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, label(end)));
  drawn.forEach((one, number) => {
    const colour = `s${(number % 4) + 1}`;
    let path = "", before = null;
    for (const [ms, value] of one.points) {
      if (value !== null) path += `${before === null ? "M" : "L"}${x(ms).toFixed(1)} ${y(value).toFixed(1)}`;
      before = value;
    }
    picture.append(svg("path", { d: path, class: colour }));
    const points = one.points.filter(([, value]) => value !== null);
    if (points.length < 20) picture.append(...points.map(([ms, value]) => svg("circle", { cx: x(ms), cy: y(value), r: 2.6, class: colour })));
  });
  box.append(el("div", { className: "legend" }, drawn.map((one, number) => el("span", {}, el("i", { className: `s${(number % 4) + 1}` }), `${one.name} ${show(last(one.points))}`))));
  return box;
}

function last(points) {
  for (let at = points.length - 1; at >= 0; at -= 1) if (points[at][1] !== null) return points[at][1];
  return null;
}

/** How wide a chart's picture is in this grid now, in pixels. */
export function roomFor(grid) {
  const picture = svg("svg", {}), probe = el("div", { className: "chart" }, picture);
  grid.append(probe);
  const width = picture.getBoundingClientRect().width;
  probe.remove();
  return Math.max(200, Math.round(width) || 360);
}

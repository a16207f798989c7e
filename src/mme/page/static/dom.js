// Making elements, and numbers as people read them. Whatever is shown is text of others: it goes in as text alone.

/** An element with properties, attributes (in `attrs`), listeners (on...) and children (nodes or text; null is none). */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "attrs") for (const [key, one] of Object.entries(value)) node.setAttribute(key, one);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A table that scrolls by itself where it is wider than the screen, also by the keyboard: by its buttons, or where it has none, by itself. Columns without a title are named for those who listen. */
export function table(name, columns, rows) {
  const heads = columns.map(([title, className = "", aloud = ""]) => el("th", { scope: "col", className }, title || el("span", { className: "unseen", textContent: aloud })));
  const reached = rows.some((row) => row.querySelector("button")) ? {} : { tabIndex: 0 };
  return el("div", { className: "scroll", ...reached, attrs: { role: "region", "aria-label": name, "data-key": `table-${name}` } }, el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, rows)));
}

export const $ = (id) => document.getElementById(id);

/** New children for a node; what had the focus in it has it again (elements are known by data-key), and nothing scrolls: the reader may look elsewhere by now. */
export function fill(node, ...children) {
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  if (key !== undefined) {
    for (const other of node.querySelectorAll("[data-key]")) if (other.dataset.key === key) return other.focus({ preventScroll: true });
  }
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  while (value >= 999.5 && unit < 4) { value /= 1000; unit += 1; }
  return `${value < 9.95 && unit ? value.toFixed(1) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

/** Milliseconds, as "5.6 ms" or "1.2 s". */
export function time(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 9.95) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  return ms < 99950 ? `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s` : `${Math.round(ms / 60000)} min`;
}

/** How long ago, of seconds. */
export function ago(seconds) {
  if (seconds < 1) return "now";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.floor(seconds)} s ago`;
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  return `${share > 0.995 && share < 1 ? ">99" : Math.round(share * 100)} %`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });

/** The median of numbers; null of none. */
export const middle = (values) => values.length ? [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] : null;

export const whole = (value) => value.toLocaleString("en");

export function badge(words, kind = "") {
  return el("span", { className: `badge ${kind}`, textContent: words });
}

/** A button that copies text, and says so. */
export function copyButton(text, key) {
  const button = el("button", { type: "button", className: "small", textContent: "Copy" });
  button.dataset.key = `copy-${key}`;
  button.addEventListener("click", () => copy(button, typeof text === "function" ? text() : text));
  return button;
}

export async function copy(button, text) {
  let done = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = "Not allowed";
  }
  const label = button.textContent;
  button.textContent = done;
  setTimeout(() => { button.textContent = label; }, 1200);
}

export function copyBox(text, key) {
  return el("div", { className: "copybox" }, el("pre", { textContent: text }), copyButton(text, key));
}

// The log's lines: shown as such, and as the requests and loads that our container writes into them.
import { $, badge, clock, copy, el, fill, middle, time, whole } from "./dom.js";

const LINES_KEPT = 3000;
const LINES_SHOWN = 600;
const REQUESTS_SHOWN = 300;

function logLine(line) {
  return el("div", { className: `line ${["warning", "error"].includes(line.level) ? line.level : (line.status ?? 0) >= 500 ? "error" : ""}` },
    el("time", { textContent: clock(line.ms), title: line.stream }), el("span", {}, $("log-raw").checked ? line.text : readable(line)));
}

// Of a line of our container: what happened first, and without what the page says elsewhere.
const SAID = ["time", "level", "event", "target", "model", "url", "message"];
function readable(line) {
  if (!line.event || !line.text.startsWith("{")) return line.text;
  let fields;
  try { fields = JSON.parse(line.text); } catch { return line.text; }
  const shown = (value) => Array.isArray(value) && value.length > 3 ? `[${value.length}]` : typeof value === "object" ? JSON.stringify(value) : String(value);
  const rest = Object.entries(fields).filter(([name, value]) => !SAID.includes(name) && value !== "" && !(Array.isArray(value) && !value.length));
  return [el("b", { textContent: line.event }), line.target ? ` ${line.target}` : "", fields.message ? ` ${shown(fields.message)}` : "", el("i", { textContent: rest.map(([name, value]) => ` ${name}=${shown(value)}`).join("") })];
}

export class Log {
  /** `endpoint` says whether there is one. */
  constructor(endpoint) {
    this.endpoint = endpoint;
    this.requests = [];
    this.timings = new Map(); // target -> {load, private, warm: [ms], cold, count, last}
    this.forget();
    for (const id of ["request-filter", "request-errors", "request-cold"]) $(id).addEventListener("input", () => this.showRequests());
    for (const id of ["log-filter", "log-errors", "log-follow", "log-raw"]) $(id).addEventListener("input", () => this.show());
    $("lines").addEventListener("scroll", () => {
      const box = $("lines");
      if ($("log-follow").checked && box.scrollHeight - box.scrollTop - box.clientHeight > 60) $("log-follow").checked = false;
    });
    $("log-copy").addEventListener("click", (event) => copy(event.target, this.wanted().map((line) => line.text).join("\n")));
  }

  /** Begins anew, as for another endpoint. */
  forget() {
    this.lines = [];
    this.ids = new Set();
    this.from = null; // where the server goes on
    this.cut = false; // whether older lines are left out
    this.requests.length = 0;
    this.timings.clear();
  }

  /** Adds an answer of the server; whether there are new lines in it. */
  take(body) {
    this.from = body.next;
    this.cut = this.cut || body.cut;
    const fresh = body.lines.filter((line) => !this.ids.has(line.id));
    for (const line of fresh) {
      this.ids.add(line.id);
      this.lines.push(line);
      this.note(line);
    }
    if (this.lines.length > LINES_KEPT) {
      for (const line of this.lines.splice(0, this.lines.length - LINES_KEPT)) this.ids.delete(line.id);
      this.cut = true;
    }
    return fresh.length > 0;
  }

  /** What a line tells of a model: how long its load took, and its requests. */
  note(line) {
    if (!line.target || (line.event !== "invoke" && line.event !== "load")) return;
    const known = this.timings.get(line.target) ?? { load: null, private: null, warm: [], cold: null, count: 0, last: 0 };
    this.timings.set(line.target, known);
    if (line.event === "load") {
      known.load = line.load_s === undefined ? null : line.load_s * 1000;
      known.private = line.private ?? null;
      return;
    }
    known.count += 1;
    known.last = line.ms;
    if (line.cold) known.cold = line.total_ms;
    else if (line.total_ms !== undefined && (line.status ?? 200) < 400) {
      known.warm.push(line.total_ms);
      if (known.warm.length > 200) known.warm.shift();
    }
    this.requests.push(line);
    if (this.requests.length > LINES_KEPT) this.requests.shift();
  }

  /** The requests of those lines, the last first. */
  showRequests() {
    const words = $("request-filter").value.trim().toLowerCase();
    const errors = $("request-errors").checked, cold = $("request-cold").checked;
    const matching = this.requests.filter((line) => (!words || `${line.target} ${line.status}`.toLowerCase().includes(words)) && (!errors || (line.status ?? 200) >= 400) && (!cold || line.cold));
    const shown = matching.slice(-REQUESTS_SHOWN).reverse();
    fill($("request-table").tBodies[0], shown.map((line) => el("tr", {},
      el("td", { className: "time", textContent: clock(line.ms) }), el("td", { className: "wide mono", textContent: line.target }),
      el("td", {}, badge(String(line.status ?? "–"), (line.status ?? 200) >= 400 ? "bad" : "good")), el("td", { className: "n", textContent: line.total_ms === undefined ? "–" : time(line.total_ms) }),
      el("td", {}, line.cold ? badge("cold", "warn") : null), el("td", { textContent: line.stream.split("/")[0] }))));
    if (!shown.length) fill($("request-table").tBodies[0], el("tr", {}, el("td", { colSpan: 6, className: "none", textContent: this.requests.length ? "None of the requests is like that." : "No requests in the log of the last 15 minutes. They come from our container's lines; other containers do not name the target." })));
    const warm = middle(matching.filter((line) => !line.cold && line.total_ms !== undefined).map((line) => line.total_ms));
    const first = middle(matching.filter((line) => line.cold && line.total_ms !== undefined).map((line) => line.total_ms));
    $("request-sum").textContent = matching.length ? `${whole(matching.length)} requests since ${clock(matching[0].ms)}${matching.length > shown.length ? `, the last ${shown.length} shown` : ""} · in the container: warm ${time(warm)}, the first after a load ${time(first)} (medians)` : "";
  }

  /** The lines that the filter leaves. */
  wanted() {
    const words = $("log-filter").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const errors = $("log-errors").checked;
    return this.lines.filter((line) => (!errors || line.level === "error" || (line.status ?? 0) >= 400) && words.every((word) => line.text.toLowerCase().includes(word)));
  }

  show() {
    const matching = this.wanted();
    const shown = matching.slice(-LINES_SHOWN);
    const box = $("lines");
    const at = box.scrollTop;
    box.replaceChildren(...shown.map(logLine));
    if (!shown.length) box.append(el("div", { className: "none", textContent: this.lines.length ? "No line is like that." : this.endpoint() ? "Nothing was written in the last 15 minutes." : "There is no endpoint." }));
    box.scrollTop = $("log-follow").checked ? box.scrollHeight : at;
    $("log-note").textContent = `${whole(matching.length)} lines${matching.length > shown.length ? `, the last ${shown.length} shown` : ""}${this.cut ? " · older ones are left out" : ""}`;
  }
}

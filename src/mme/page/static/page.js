// The page: asks the server what there is, again and again, and shows it.
import { $, ago, badge, bytes, copyBox, el, fill, middle, percent, table, time, whole } from "./dom.js";
import { chart, roomFor } from "./charts.js";
import { Log } from "./log.js";
import { Plans } from "./plans.js";
import { Try } from "./try.js";

const SECTIONS = ["overview", "models", "try", "requests", "log", "plan"];
const PER_PAGE = 50;
const MEMORY_POINTS = 300;

// -- the address may carry a token: kept for this tab, and out of sight
const asked = new URL(location.href);
if (asked.searchParams.has("token")) {
  sessionStorage.setItem("mme-token", asked.searchParams.get("token"));
  asked.searchParams.delete("token");
  history.replaceState(null, "", asked);
}
const token = sessionStorage.getItem("mme-token") || "1";

/** The answer of the server, as it came; an error says what is wrong in its message. */
export async function call(path, query = {}, options = {}) {
  const url = new URL(`api/${path}`, location.href.split("#")[0]);
  for (const [name, value] of Object.entries(query)) if (value !== null && value !== undefined) url.searchParams.set(name, value);
  const answer = await fetch(url, { ...options, cache: "no-cache", headers: { ...options.headers, "X-Mme-Page": token } });
  if (!answer.ok) {
    let words = `${answer.status} ${answer.statusText}`;
    try { words = (await answer.json()).error || words; } catch { /* not ours */ }
    throw new Error(words);
  }
  return answer;
}

// -- what is known
let state = null;          // the polled answer
let released = { models: [], channels: [] };
let releasedTag = null;
let series = null;
let chosen = asked.searchParams.get("endpoint") || null; // a link may name it
let memoryPoints = [];
const problems = new Map();
let pageNumber = 0, openModel = null;
const log = new Log(() => Boolean(state?.endpoint));
const { timings } = log;
const planBox = new Plans(call, () => state ? state.endpoint?.name ?? null : undefined);
const tryBox = new Try(call, () => ({ state, released, endpoint: state?.endpoint?.name }));

function problem(what, error) {
  if (error) problems.set(what, error.message ?? String(error));
  else problems.delete(what);
}

function showProblems() {
  const unknown = Object.entries(state?.unknown ?? {});
  const failure = state?.endpoint?.failure;
  fill($("problems"),
    [...problems].map(([what, words]) => el("div", { className: "problem" }, el("b", { textContent: `${what}: ` }), words)),
    failure ? el("div", { className: "problem" }, el("b", { textContent: `${state.endpoint.name} ${state.endpoint.status === "Failed" ? "failed" : "was not changed"}: ` }), failure) : null,
    unknown.map(([what, words]) => el("div", { className: "problem soft" }, el("b", { textContent: `${what} cannot be shown: ` }), words)));
}

// -- asking

async function askState() {
  try {
    const answer = await (await call("state", { endpoint: chosen })).json();
    if (chosen && !answer.endpoint && answer.endpoints.length && !answer.endpoints.some((one) => one.name === chosen)) {
      chosen = null; // it was deleted; the first one is shown instead
      return askState();
    }
    const before = state?.endpoint?.name;
    state = answer;
    if (before !== state.endpoint?.name) forget();
    remember();
    $("live").className = "live on";
    $("live").textContent = "live";
    problem("Connection", null);
  } catch (error) {
    $("live").className = "live off";
    $("live").textContent = "not connected";
    problem("Connection", error instanceof TypeError ? new Error("the server does not answer. Was it stopped?") : error);
  }
  showProblems();
  showHead();
  if (current() === "overview") showOverview();
  if (current() === "models") showModels();
  tryBox.refresh();
}

function forget() {
  log.forget();
  memoryPoints = [];
  released = { models: [], channels: [] }; releasedTag = null; series = null;
  problems.delete("Models"); problems.delete("Plan"); problems.delete("Log"); problems.delete("Metrics");
}

function remember() {
  const instances = state.endpoint?.instances;
  if (!instances) return;
  const sum = (key) => instances.reduce((total, one) => one[key] === null ? total : (total ?? 0) + one[key], null);
  memoryPoints.push([Date.parse(state.time), sum("memory"), sum("disk"), instances.reduce((n, one) => n + one.models.filter((m) => m[1] === "loaded").length, 0)]);
  if (memoryPoints.length > MEMORY_POINTS) memoryPoints.shift();
}

async function askModels() {
  const name = state?.endpoint?.name;
  if (!name) return;
  try {
    const answer = await call("models", { endpoint: name });
    const tag = answer.headers.get("ETag");
    problem("Models", null);
    if (tag && tag === releasedTag) return;
    const body = await answer.json();
    if (name !== state?.endpoint?.name) return;
    released = body;
    releasedTag = tag;
    for (const model of released.models) model.words = [model.name, ...model.versions.map((v) => v[0]), ...released.channels.filter((c) => c.model === model.name).map((c) => c.name)].join(" ");
    $("count").textContent = whole(released.models.length);
    if (current() === "models") showModels();
    tryBox.refresh();
  } catch (error) {
    if (!(error instanceof TypeError)) problem("Models", error); // of a lost connection the state tells
  }
}

async function askPlans() {
  if (current() !== "plan") return;
  try {
    await planBox.refresh();
    problem("Plan", null);
  } catch (error) {
    if (!(error instanceof TypeError)) problem("Plan", error); // of a lost connection the state tells
  }
}

async function askSeries() {
  const name = state?.endpoint?.name;
  if (!name) return;
  try {
    const body = await (await call("series", { endpoint: name })).json();
    if (name !== state?.endpoint?.name) return;
    series = body;
    problem("Metrics", null);
    if (current() === "overview") showCharts();
  } catch (error) {
    if (!(error instanceof TypeError)) problem("Metrics", error); // of a lost connection the state tells
  }
}

async function askLog() {
  const name = state?.endpoint?.name;
  if (!name) return;
  try {
    const body = await (await call("log", { endpoint: name, since: log.from })).json();
    if (name !== state?.endpoint?.name) return;
    problem("Log", null);
    if (!log.take(body)) return;
    if (current() === "log") log.show();
    if (current() === "requests") log.showRequests();
    if (current() === "models") showModels();
  } catch (error) {
    if (!(error instanceof TypeError)) problem("Log", error); // of a lost connection the state tells
  }
}

// -- showing

const STATES = { InService: "in service", Starting: "starting", Restarting: "starting again", Stopping: "stopping" };
const STATUS = { InService: "good", Failed: "bad", Deleting: "warn", OutOfService: "bad", UpdateRollbackFailed: "bad" };

function showHead() {
  if (!state) return;
  const select = $("endpoint");
  const names = state.endpoints.map((one) => one.name);
  const want = names.length ? names : [""];
  if (document.activeElement !== select && JSON.stringify([...select.options].map((o) => o.value)) !== JSON.stringify(want)) {
    select.replaceChildren(...(names.length ? names.map((name) => el("option", { value: name, textContent: name })) : [el("option", { value: "", textContent: "none yet" })]));
  }
  if (state.endpoint && document.activeElement !== select) select.value = state.endpoint.name;
  const status = state.endpoint?.status ?? "";
  $("status").textContent = status.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase();
  $("status").className = `badge ${STATUS[status] ?? "warn"}`;
  $("where").textContent = `${state.where === "local" ? "local AWS" : "AWS, read only"} · ${state.region}`;
  document.title = state.endpoint ? `${state.endpoint.name} – models` : "Models behind one endpoint";
}

function tile(label, value, small, share) {
  return el("div", { className: "tile" }, el("div", { className: "k", textContent: label }), el("div", { className: "v", textContent: value }),
    el("div", { className: "s", textContent: small || "\u00a0" }),
    share === undefined || share === null ? null : el("meter", { min: 0, max: 1, high: 0.9, value: Math.min(1, share), attrs: { "aria-label": label } }));
}

/** The counts of the variants together, and means by how often each was measured. */
function together(variants) {
  const figures = variants.map((one) => one.figures).filter(Boolean);
  const sum = (key) => figures.reduce((total, one) => total + (one[key] ?? 0), 0);
  const mean = (key) => {
    const each = figures.map((one) => one[key]).filter(Boolean);
    const count = each.reduce((total, one) => total + one.count, 0);
    return count ? { count, ms: each.reduce((total, one) => total + one.mean * one.count, 0) / count * 1000, longest: Math.max(...each.map((one) => one.longest)) * 1000 } : null;
  };
  const asked = figures.filter((one) => one.hit_ratio !== null);
  const weight = asked.reduce((total, one) => total + one.requests, 0);
  return {
    any: figures.length > 0, requests: sum("requests"), errors: sum("client_errors") + sum("server_errors"),
    hits: weight ? asked.reduce((total, one) => total + one.hit_ratio * one.requests, 0) / weight : null,
    latency: mean("latency"), load: mean("load"), download: mean("download"), unloads: sum("unloads"),
    loaded: figures.some((one) => one.loaded !== null) ? Math.max(...figures.map((one) => one.loaded ?? 0)) : null,
    highest: (key) => figures.reduce((most, one) => one[key] === null ? most : Math.max(most ?? 0, one[key]), null),
  };
}

function showOverview() {
  if (!state) return;
  const endpoint = state.endpoint;
  $("empty").hidden = Boolean(endpoint) || state.endpoints.length > 0 || Object.keys(state.unknown).length > 0;
  if (state.exports.length) {
    if (!$("exports").firstChild) fill($("exports"), el("div", { className: "card" }, el("h2", { textContent: "Use it from a shell" }), copyBox(state.exports.join("\n"), "exports")));
  }
  if (!endpoint) {
    for (const id of ["tiles", "charts", "variants", "alarms"]) fill($(id));
    return;
  }
  const all = together(endpoint.variants);
  const here = endpoint.instances;
  const loadedHere = here ? here.reduce((n, one) => n + one.models.filter((m) => m[1] === "loaded").length, 0) : null;
  const busy = here ? here.reduce((n, one) => n + one.models.reduce((m, model) => m + model[2], 0), 0) : null;
  const coming = here ? here.reduce((n, one) => n + one.models.filter((m) => m[1] !== "loaded").length, 0) : 0;
  const memory = here ? here.reduce((t, one) => one.memory === null ? t : (t ?? 0) + one.memory, null) : null;
  const disk = here ? here.reduce((t, one) => t + (one.disk ?? 0), 0) : null;
  const current = endpoint.variants.reduce((n, one) => n + (one.current ?? 0), 0);
  const desired = endpoint.variants.reduce((n, one) => n + (one.desired ?? 0), 0);
  const cold = all.load ? all.load.ms + (all.download?.ms ?? 0) * (all.download ? all.download.count / all.load.count : 0) : null;
  fill($("tiles"),
    tile("Requests, last hour", whole(all.requests), all.errors ? `${whole(all.errors)} with an error` : "no errors"),
    tile("Cache hits", percent(all.hits), "requests whose model was loaded"),
    tile("Loaded now", here ? whole(loadedHere) : all.loaded === null ? "–" : whole(all.loaded), here ? (coming ? `${coming} coming or going` : `${busy} at work · ${whole(all.unloads)} evicted`) : "in the fullest instance"),
    tile("Cold: until it is loaded", time(cold), all.load ? `mean of ${whole(all.load.count)} loads` : "no loads"),
    tile("Warm: the model’s answer", time(all.latency?.ms), all.latency ? `longest ${time(all.latency.longest)}` : "no requests"),
    here
      ? tile("Memory", bytes(memory), `${here.length} container${here.length === 1 ? "" : "s"}`)
      : tile("Memory", all.highest("memory") === null ? "–" : `${Math.round(all.highest("memory"))} %`, "highest, last hour", (all.highest("memory") ?? 0) / 100),
    here
      ? tile("Archives on disk", bytes(disk), "unpacked, also of models not loaded")
      : tile("Disk", all.highest("disk") === null ? "–" : `${Math.round(all.highest("disk"))} %`, "highest, last hour", (all.highest("disk") ?? 0) / 100),
    tile("Instances", current === desired ? `${current}` : `${current} → ${desired}`, endpoint.update ? "updating" : endpoint.variants[0]?.instance_type ?? ""));
  if (!$("charts").firstChild || memoryPoints.length) showCharts();
  const rows = endpoint.variants.map((one) => {
    const own = (here ?? []).filter((instance) => instance.variant === one.name);
    return el("tr", {},
      el("td", { className: "wide" }, el("b", { textContent: one.name }), one.shadow ? badge("shadow") : null),
      el("td", { textContent: one.instance_type }),
      el("td", { className: "n", textContent: one.scaling ? `${one.current ?? "–"} (${one.scaling.minimum} to ${one.scaling.maximum})` : `${one.current ?? "–"}` }),
      el("td", { className: "n", textContent: one.weight === null ? "–" : `${one.weight}` }),
      el("td", { className: "n", textContent: one.figures ? whole(one.figures.requests) : "–" }),
      el("td", { className: "wide lined", textContent: own.length ? own.map((i) => `${i.instance.replace(/^(i-.{6}).*/, "$1…")}: ${STATES[i.state] ?? i.state}, ${i.models.filter((m) => m[1] === "loaded").length} loaded, ${bytes(i.memory)}`).join("\n") : one.image ?? ""}));
  });
  fill($("variants"), el("div", { className: "card" }, el("h2", { textContent: "Variants" }),
    table("Variants", [["Variant"], ["Instance type"], ["Instances", "n"], ["Weight", "n"], ["Requests", "n"], [here ? "Containers" : "Image"]], rows),
    endpoint.update ? el("p", { textContent: `An update is under way: ${endpoint.update}` }) : null,
    el("p", { className: "quiet", textContent: `Configuration ${endpoint.config}, last changed ${new Date(endpoint.modified).toLocaleString()}` })));
  const alarms = endpoint.alarms ?? [];
  fill($("alarms"), alarms.length ? el("div", { className: "card" }, el("h2", { textContent: "Alarms" }), el("div", { className: "split" },
    alarms.map((one) => el("span", { title: one.reason }, badge(one.state === "ALARM" ? "alarm" : one.state === "OK" ? "ok" : "no data", one.state === "ALARM" ? (one.scaling ? "warn" : "bad") : one.state === "OK" ? "good" : ""), ` ${one.name}`)))) : null);
}

function showCharts() {
  if (!state?.endpoint) return;
  const drawn = [], width = roomFor($("charts"));
  if (memoryPoints.length && memoryPoints.some((point) => point[1] !== null)) {
    drawn.push(chart(width, "Memory of the containers", [{ name: "memory", points: memoryPoints.map((p) => [p[0], p[1]]) }], bytes));
  }
  if (memoryPoints.length) drawn.push(chart(width, "Models loaded", [{ name: "loaded", points: memoryPoints.map((p) => [p[0], p[3]]) }], (v) => v === null ? "–" : `${Math.round(v * 10) / 10}`, 2, true));
  if (series) {
    const names = Object.keys(series.variants);
    // From the first minute with a value on; a line at the right edge of three empty hours shows nothing.
    const all = Object.values(series.variants).flatMap((one) => Object.values(one));
    const length = all[0]?.length ?? 0;
    let from = 0;
    while (from < length - 10 && all.every((row) => row[from] === null)) from += 1;
    const rows = (key) => names.map((name) => ({ name: names.length > 1 ? `${name} ` : "", points: series.variants[name][key].slice(from).map((value, at) => [(series.start + (from + at) * series.step) * 1000, value]) }));
    const named = (key, words) => rows(key).map((one) => ({ name: `${one.name}${words}`, points: one.points }));
    const plain = (v) => v === null ? "–" : `${Math.round(v * 100) / 100}`;
    drawn.push(chart(width, "Requests a minute", [...named("requests", "requests"), ...named("errors", "errors").filter((one) => one.points.some(([, v]) => v))], plain, 0, true));
    drawn.push(chart(width, "Warm: the model’s answer", named("latency_ms", "mean"), time));
    drawn.push(chart(width, "Cold: download and load", [...named("download_ms", "download"), ...named("load_ms", "load")], time));
    drawn.push(chart(width, "Cache hits", named("hit_ratio", "share"), percent, 1));
    if (!memoryPoints.length) {
      drawn.push(chart(width, "Models loaded", named("loaded", "fullest instance"), plain, 0, true));
      const used = [...named("memory", "memory"), ...named("disk", "disk")];
      drawn.push(chart(width, "Memory and disk", used, (v) => v === null ? "–" : `${Math.round(v)} %`, 100));
    }
  }
  fill($("charts"), drawn);
}

// -- models

/** For each target: is it loaded, and since when it is idle; the most of all instances. */
function loadedNow() {
  const targets = new Map();
  for (const instance of state?.endpoint?.instances ?? []) {
    for (const [target, how, users, idle] of instance.models) {
      const known = targets.get(target) ?? { count: 0, how, users: 0, idle: Infinity };
      if (how === "loaded") { known.count += 1; known.how = how; }
      known.users += users;
      known.idle = Math.min(known.idle, idle);
      targets.set(target, known);
    }
  }
  return targets;
}

const targetOf = (model, version) => `${model.name}-${version[0]}.tar.gz`;

/** What the model's name means now: target -> share. */
function meaning(model) {
  const own = released.channels.find((one) => one.name === model.name);
  return own ? own.targets : { [targetOf(model, model.versions[0])]: 100 };
}

function showModels() {
  const began = performance.now();
  const loaded = loadedNow();
  const words = $("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const which = $("which").value, order = $("order").value;
  const channelled = which === "channel" ? new Set(released.channels.map((one) => one.model)) : null;
  const isLoaded = (model) => model.versions.some((version) => loaded.has(targetOf(model, version)));
  let rows = released.models.filter((model) => words.every((word) => model.words.includes(word)) && (which !== "loaded" || isLoaded(model)) && (!channelled || channelled.has(model.name)));
  const used = (model) => Math.max(...model.versions.map((v) => { const known = loaded.get(targetOf(model, v)); return known ? -known.idle : timings.get(targetOf(model, v))?.last ? -1e6 : -Infinity; }));
  if (order === "time") rows = [...rows].sort((a, b) => b.versions[0][2] - a.versions[0][2]);
  if (order === "size") rows = [...rows].sort((a, b) => b.versions[0][1] - a.versions[0][1]);
  if (order === "used") rows = [...rows].sort((a, b) => used(b) - used(a) || 0);
  const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  pageNumber = Math.min(pageNumber, pages - 1);
  const shown = rows.slice(pageNumber * PER_PAGE, (pageNumber + 1) * PER_PAGE);
  const now = Date.parse(state?.time ?? 0) / 1000;
  const body = $("table").tBodies[0];
  fill(body, shown.map((model) => modelRow(model, loaded, now)));
  if (!shown.length) fill(body, el("tr", {}, el("td", { colSpan: 8, className: "none", textContent: released.models.length ? "None of the models is like that." : state?.endpoint ? "Nothing is released yet. invoke package upload does it." : "There is no endpoint." })));
  $("found").textContent = released.models.length ? `${whole(rows.length)} of ${whole(released.models.length)} models · ${whole(released.versions)} versions · ${bytes(released.bytes)} in s3://${released.bucket}/${released.prefix}` : "";
  $("page").textContent = pages > 1 ? `Page ${pageNumber + 1} of ${pages}` : "";
  $("prev").hidden = $("next").hidden = pages < 2;
  $("prev").disabled = pageNumber === 0;
  $("next").disabled = pageNumber >= pages - 1;
  showDetail(loaded, now);
  performance.measure("models", { start: began });
}

function loadedCell(known) {
  if (!known) return null;
  if (!known.count) return el("span", { className: "dot moving", textContent: known.how });
  const words = known.users ? `${known.users} at work` : `idle ${ago(known.idle).replace(" ago", "")}`;
  return el("span", { className: "dot", textContent: known.count > 1 ? `in ${known.count}, ${words}` : words.replace("idle now", "idle") });
}

function modelRow(model, loaded, now) {
  const means = Object.entries(meaning(model));
  const targets = means.map(([target]) => target);
  const best = targets.map((target) => loaded.get(target)).find(Boolean) ?? model.versions.map((v) => loaded.get(targetOf(model, v))).find(Boolean);
  const timing = targets.map((target) => timings.get(target)).find(Boolean);
  const total = means.reduce((sum, [, weight]) => sum + weight, 0);
  const open = el("button", { type: "button", className: "link", textContent: model.name, attrs: { "aria-expanded": String(openModel === model.name) } });
  open.dataset.key = `model-${model.name}`;
  open.addEventListener("click", () => { openModel = openModel === model.name ? null : model.name; showModels(); if (openModel) $("detail").scrollIntoView({ block: "nearest" }); });
  const cell = (className, label, ...children) => { const td = el("td", { className }, children); if (td.childNodes.length) td.dataset.label = label; return td; };
  return el("tr", { className: openModel === model.name ? "open" : "" },
    el("td", { className: "wide" }, open),
    el("td", { className: "mono" }, el("div", { className: "split" }, means.map(([target, weight]) => el("span", { className: "chip", textContent: means.length > 1 ? `${short(target)} ${Math.round(weight / total * 100)} %` : short(target) })))),
    el("td", {}, loadedCell(best)),
    cell("n", "load", timing?.load ? time(timing.load) : null),
    cell("n", "warm", timing?.warm.length ? time(middle(timing.warm)) : null),
    cell("n", "", bytes(model.versions[0][1])),
    cell("n", "versions", whole(model.versions.length + model.more)),
    cell("time", "newest", ago(Math.max(0, now - model.versions[0][2]))));
}

const short = (target) => (/-([0-9a-f]{12})\.tar\.gz$/.exec(target) ?? [null, target])[1];

function showDetail(loaded, now) {
  const model = released.models.find((one) => one.name === openModel);
  if (!model) return fill($("detail"));
  const channels = released.channels.filter((one) => one.model === model.name);
  const named = (target) => [...channels.filter((one) => target in one.targets).map((one) => one.name), ...(!channels.some((one) => one.name === model.name) && target === targetOf(model, model.versions[0]) ? [model.name] : [])];
  const button = (words, key, work) => { const b = el("button", { type: "button", className: "small", textContent: words }); b.dataset.key = key; b.addEventListener("click", work); return b; };
  fill($("detail"), el("div", { className: "card" }, el("h2", { textContent: model.name }),
    table(`Versions of ${model.name}`, [["Version"], ["Meant by"], ["Loaded"], ["Released"], ["Size", "n"], ["Load", "n"], ["Warm", "n"], ["", "", "What to do with it"]],
      model.versions.map((version, number) => {
        const target = targetOf(model, version);
        const timing = timings.get(target);
        return el("tr", {}, el("td", { className: "mono", textContent: version[0] }), el("td", {}, el("div", { className: "split" }, named(target).map((name) => el("span", { className: "chip", textContent: name })))), el("td", {}, loadedCell(loaded.get(target))),
          el("td", { className: "time", textContent: ago(Math.max(0, now - version[2])), title: new Date(version[2] * 1000).toLocaleString() }), el("td", { className: "n", textContent: bytes(version[1]) }),
          el("td", { className: "n", textContent: timing?.load ? time(timing.load) : "–" }), el("td", { className: "n", textContent: timing?.warm.length ? time(middle(timing.warm)) : "–" }),
          el("td", { className: "time" }, state?.can_predict ? [button("Try", `try-${target}`, () => { tryBox.choose(0, model.name, target); go("try"); }), " ",
            model.versions.length > 1 ? button("Compare", `compare-${target}`, () => { tryBox.choose(0, model.name, target); tryBox.choose(1, model.name, targetOf(model, model.versions[number === 0 ? 1 : 0])); go("try"); }) : null] : null));
      })),
    model.more ? el("p", { className: "quiet", textContent: `${whole(model.more)} older versions: invoke releases --model ${model.name}` }) : null,
    copyBox(`invoke predict --endpoint ${state.endpoint.name} --bucket ${released.bucket} --prefix ${released.prefix} --model ${model.name} --text "…"`, "predict")));
}

// -- moving about

const current = () => SECTIONS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "overview";

function go(section) {
  if (current() === section) show();
  else location.hash = section;
}

function show() {
  const now = current();
  for (const name of SECTIONS) $(`section-${name}`).hidden = name !== now;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${now}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  ({ overview: showOverview, models: showModels, try: () => tryBox.refresh(), requests: () => log.showRequests(), log: () => log.show(), plan: () => askPlans().then(showProblems) })[now]();
  window.scrollTo(0, 0);
}

window.addEventListener("hashchange", show);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
$("endpoint").addEventListener("change", (event) => {
  chosen = event.target.value || null;
  asked.searchParams.set("endpoint", chosen ?? "");
  history.replaceState(null, "", asked.search + location.hash);
  event.target.blur();
  tick(true);
});
for (const id of ["search", "which", "order"]) $(id).addEventListener("input", () => { pageNumber = 0; showModels(); });
$("prev").addEventListener("click", () => { pageNumber -= 1; showModels(); });
$("next").addEventListener("click", () => { pageNumber += 1; showModels(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
    const field = { models: "search", requests: "request-filter", log: "log-filter" }[current()];
    if (field) { event.preventDefault(); $(field).focus(); }
  }
});

// -- light and dark
const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem("mme-theme", theme);
  $("theme").textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
  $("theme").title = `Theme: ${{ auto: "as the system has it", light: "light", dark: "dark" }[theme]}`;
  $("theme").setAttribute("aria-label", $("theme").title);
}
setTheme(THEMES.includes(localStorage.getItem("mme-theme")) ? localStorage.getItem("mme-theme") : "auto");
$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("mme-theme")) + 1) % 3]));

// -- the round
let round = 0, timer = null, going = false;
async function tick(all = false) {
  clearTimeout(timer);
  if (going && !all) return;
  going = true;
  try {
    if (!document.hidden || round === 0) {
      await askState();
      const work = [askLog(), askPlans()];
      if (all || round % 2 === 0) work.push(askModels());
      if (all || round % 5 === 0) work.push(askSeries());
      await Promise.all(work);
      showProblems();
      round += 1;
    }
  } finally {
    going = false;
    clearTimeout(timer);
    timer = setTimeout(tick, 1000 * (state?.poll_seconds ?? 2));
  }
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) tick(true); });
show();
tick(true);

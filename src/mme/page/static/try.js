// Trying models: an input, one model or two side by side, and what came back.
import { $, badge, bytes, copyButton, el, fill, time } from "./dom.js";

const NAMES_OFFERED = 60;
const MOST_BYTES = 6291456;
const HINTS = {
  text: "A text. It is sent as {\"inputs\": …}.",
  two: "Two texts. A model of vectors is asked for both, and their cosine similarity is shown.",
  json: "The whole request, as in {\"inputs\": \"She was\", \"parameters\": {\"max_new_tokens\": 20}}",
};

export class Try {
  /** `call` asks the server; `known` gives {state, released, endpoint}. */
  constructor(call, known) {
    this.call = call;
    this.known = known;
    this.sides = [this.side(0), this.side(1)];
    this.texts = { text: "One endpoint, many models.", two: ["A cat sits on the mat.", "There is a kitten on the rug."], json: "{\"inputs\": \"One endpoint, many models.\"}" };
    this.file = null;
    this.running = 0;
    this.kind = "text";
    for (const side of this.sides) $("sides").append(side.box);
    for (const radio of $("form").elements.kind) radio.addEventListener("change", () => { this.kind = radio.value; this.showInput(); });
    $("compare").addEventListener("change", () => this.showSides());
    $("form").addEventListener("submit", (event) => { event.preventDefault(); this.run(); });
    $("form").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.run(); } });
    this.showInput();
    this.showSides();
  }

  side(number) {
    const letter = "AB"[number];
    const model = el("input", { autocomplete: "off", spellcheck: false, required: number === 0, attrs: { list: "names", "aria-label": `Model ${letter}` }, placeholder: "a model or channel" });
    const version = el("select", { attrs: { "aria-label": `Version ${letter}` } });
    const title = el("h3", { textContent: letter });
    const box = el("div", { className: "card side" }, title, el("label", {}, "Model or channel", model), el("label", {}, "Version", version));
    const side = { model, version, box, title, shown: "" };
    model.addEventListener("input", () => { this.offer(model.value); this.versions(side); });
    model.addEventListener("focus", () => this.offer(""));
    return side;
  }

  /** Names that fit what is typed; a list of thousands would be slow to open. */
  offer(words) {
    const { released } = this.known();
    const names = [...new Set([...released.models.map((one) => one.name), ...released.channels.map((one) => one.name)])];
    const fitting = names.filter((name) => name.includes(words.trim().toLowerCase())).slice(0, NAMES_OFFERED);
    $("names").replaceChildren(...fitting.map((value) => el("option", { value })));
  }

  versions(side) {
    const { released } = this.known();
    const name = side.model.value.trim();
    const channel = released.channels.find((one) => one.name === name);
    const model = released.models.find((one) => one.name === (channel?.model ?? name));
    const targets = model ? model.versions.map((one) => `${model.name}-${one[0]}.tar.gz`) : [];
    const means = channel ? Object.entries(channel.targets) : [];
    const total = means.reduce((sum, [, weight]) => sum + weight, 0);
    const words = channel ? means.map(([target, weight]) => `${target.slice(-19, -7)}${means.length > 1 ? ` ${Math.round(weight / total * 100)} %` : ""}`).join(", ") : model ? `newest, ${model.versions[0][0]}` : "";
    const now = JSON.stringify([name, targets, words]);
    if (now === side.shown) return;
    side.shown = now;
    const before = side.version.value;
    side.version.replaceChildren(...(model ? [el("option", { value: "", textContent: `what ${name} means now (${words})` }), ...targets.map((target) => el("option", { value: target, textContent: target.slice(-19, -7) }))] : [el("option", { value: "", textContent: name ? "no such model" : "–" })]));
    if (targets.includes(before)) side.version.value = before;
  }

  /** Fills a side: from the list of models. */
  choose(number, name, target) {
    if (number === 1) { $("compare").checked = true; this.showSides(); } else { $("compare").checked = false; this.showSides(); }
    const side = this.sides[number];
    side.model.value = name;
    this.versions(side);
    side.version.value = target;
  }

  showSides() {
    const two = $("compare").checked;
    this.sides[1].box.hidden = !two;
    this.sides[1].model.required = two;
    this.sides[0].title.hidden = !two;
    $("sides").className = `sides ${two ? "two" : ""}`;
    if (two && !this.sides[1].model.value && this.sides[0].model.value) {
      this.sides[1].model.value = this.sides[0].model.value;
      this.versions(this.sides[1]);
    }
    this.versions(this.sides[1]);
  }

  refresh() {
    const { state, released } = this.known();
    const may = Boolean(state?.can_predict);
    $("readonly").hidden = !state || may;
    $("form").hidden = Boolean(state) && !may;
    $("run").disabled = this.running > 0 || !state?.endpoint;
    const first = this.sides[0].model;
    if (!first.value && released.models.length && document.activeElement !== first) first.value = released.models[0].name;
    for (const side of this.sides) if (document.activeElement !== side.version) this.versions(side);
  }

  showInput() {
    const kind = this.kind;
    const area = (value, label, change) => { const node = el("textarea", { value, spellcheck: false, attrs: { "aria-label": label } }); node.addEventListener("input", () => change(node.value)); return node; };
    if (kind === "text") fill($("input"), area(this.texts.text, "Text", (value) => { this.texts.text = value; }));
    if (kind === "json") { const node = area(this.texts.json, "JSON", (value) => { this.texts.json = value; }); node.classList.add("mono"); fill($("input"), node); }
    if (kind === "two") {
      fill($("input"), el("div", { className: "sides two" }, [0, 1].map((at) => area(this.texts.two[at], `Text ${at + 1}`, (value) => { this.texts.two[at] = value; }))));
    }
    if (kind === "file") this.showDrop();
    if (HINTS[kind]) $("input").append(el("p", { className: "quiet", textContent: HINTS[kind] }));
  }

  showDrop() {
    const pick = el("input", { type: "file", accept: "image/*,audio/*", attrs: { "aria-label": "Image or sound" } });
    const preview = el("div");
    const take = (file) => {
      if (!file) return;
      this.file = file;
      if (this.preview) URL.revokeObjectURL(this.preview);
      this.preview = URL.createObjectURL(file);
      fill(preview, el("p", { className: "quiet", textContent: `${file.name} · ${file.type || "no type"} · ${bytes(file.size)}` }),
        file.type.startsWith("image/") ? el("img", { src: this.preview, alt: "The chosen image" }) : file.type.startsWith("audio/") ? el("audio", { src: this.preview, controls: true }) : null);
    };
    pick.addEventListener("change", () => take(pick.files[0]));
    const drop = el("div", { className: "drop" }, el("p", {}, "Choose an image or a sound, or drop one here. "), pick, preview);
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); });
    fill($("input"), drop);
    take(this.file);
  }

  /** The body and its type. Throws what is wrong with the input. */
  request() {
    if (this.kind === "text") return [JSON.stringify({ inputs: this.texts.text }), "application/json"];
    if (this.kind === "two") return [JSON.stringify({ inputs: this.texts.two }), "application/json"];
    if (this.kind === "json") {
      try { JSON.parse(this.texts.json); } catch (error) { throw new Error(`This is not JSON: ${error.message}`); }
      return [this.texts.json, "application/json"];
    }
    if (!this.file) throw new Error("Choose a file first.");
    if (this.file.size > MOST_BYTES) throw new Error(`The file has ${bytes(this.file.size)}; an endpoint takes at most ${bytes(MOST_BYTES)}.`);
    return [this.file, this.file.type || "application/octet-stream"];
  }

  async run() {
    if (this.running || $("run").disabled) return;
    const two = $("compare").checked;
    $("results").className = `sides ${two ? "two" : ""}`;
    let body, kind;
    try {
      [body, kind] = this.request();
    } catch (error) {
      return fill($("results"), el("div", { className: "problem", textContent: error.message }));
    }
    const sides = this.sides.slice(0, two ? 2 : 1);
    const boxes = sides.map((side) => el("div", { className: "card answer" }, el("p", { className: "quiet", textContent: `Asking ${side.version.value || side.model.value} …` })));
    fill($("results"), boxes);
    this.running = sides.length;
    $("run").disabled = true;
    await Promise.all(sides.map((side, at) => this.ask(side, body, kind, boxes[at])));
    this.running = 0;
    this.refresh();
  }

  async ask(side, body, kind, box) {
    const { endpoint, state } = this.known();
    const target = side.version.value, name = side.model.value.trim();
    const loaded = (state.endpoint?.instances ?? null)?.some((one) => one.models.some((model) => model[0] === target && model[1] === "loaded"));
    try {
      const answer = await (await this.call("predict", { endpoint, ...(target ? { target } : { name }), accept: $("accept").value }, { method: "POST", body, headers: { "Content-Type": kind } })).json();
      this.show(box, answer, target && loaded === false);
    } catch (error) {
      fill(box, el("div", { className: "head" }, el("span", { className: "target", textContent: target || name }), badge("not asked", "bad")), el("pre", { className: "said", textContent: error.message }));
    }
  }

  show(box, answer, cold) {
    const head = el("div", { className: "head" }, el("span", { className: "target", textContent: answer.target }),
      answer.error ? badge(answer.error.status ? `the model answered ${answer.error.status}` : answer.error.code || "error", "bad") : badge(time(answer.seconds * 1000), "good"),
      cold ? badge("cold", "warn") : null,
      answer.error ? null : el("span", { className: "quiet", textContent: `${answer.variant} · ${answer.content_type} · ${bytes(answer.bytes)}` }));
    if (answer.error) {
      let words = answer.error.message;
      try { words = JSON.parse(words).message ?? words; } catch { /* it is text */ }
      return fill(box, head, el("pre", { className: "said", textContent: String(words) }));
    }
    const kind = answer.content_type.split(";")[0].trim().toLowerCase();
    if (answer.base64 !== undefined) {
      const blob = new Blob([Uint8Array.from(atob(answer.base64), (c) => c.charCodeAt(0))], { type: kind });
      const url = URL.createObjectURL(blob);
      const shown = kind.startsWith("image/") && kind !== "image/svg+xml" ? el("img", { src: url, alt: "The model's answer" }) : kind.startsWith("audio/") ? el("audio", { src: url, controls: true }) : null;
      return fill(box, head, shown, el("a", { href: url, download: `answer.${kind.split("/")[1] || "bin"}`, textContent: "Save the answer" }));
    }
    let value;
    try { value = JSON.parse(answer.text); } catch { return fill(box, head, el("pre", { className: "said", textContent: answer.text })); }
    const raw = el("details", {}, el("summary", { textContent: "The answer as it came" }), el("pre", { className: "said", textContent: shortened(answer.text) }), copyButton(answer.text, `answer-${answer.target}`));
    const read = this.read(value);
    fill(box, head, read ?? el("pre", { className: "said", textContent: shortened(JSON.stringify(value, null, 2)) }), read ? raw : copyButton(answer.text, `answer-${answer.target}`));
  }

  /** The answer as people read it, where it is of a known shape; else null. */
  read(value) {
    const vectors = value?.embeddings;
    if (Array.isArray(vectors) && vectors.length && vectors.every((one) => Array.isArray(one) && one.every((n) => typeof n === "number"))) return showVectors(vectors);
    const list = Array.isArray(value) ? value : [value];
    const texts = list.flat().map((one) => one?.generated_text ?? one?.summary_text ?? one?.translation_text ?? (list.length === 1 && typeof one?.text === "string" ? one.text : undefined));
    if (texts.length && texts.every((text) => typeof text === "string")) return el("pre", { className: "said", textContent: texts.join("\n\n") });
    const scored = list.flat();
    if (scored.length && scored.every((one) => typeof one?.label === "string" && typeof one?.score === "number")) {
      return el("div", {}, scored.slice(0, 20).map((one) => bar(one.label, one.score)));
    }
    if (Array.isArray(value?.labels) && Array.isArray(value?.scores)) return el("div", {}, value.labels.slice(0, 20).map((label, at) => bar(String(label), value.scores[at])));
    if (typeof value?.answer === "string") return el("pre", { className: "said", textContent: value.answer });
    return null;
  }
}

function bar(label, score) {
  return el("div", { className: "row" }, el("span", { textContent: label }), el("meter", { min: 0, max: 1, value: score, attrs: { "aria-label": label } }), el("span", { className: "n", textContent: Number(score).toFixed(3) }));
}

export function cosine(a, b) {
  let dot = 0, aa = 0, bb = 0;
  for (let at = 0; at < a.length; at += 1) { dot += a[at] * b[at]; aa += a[at] * a[at]; bb += b[at] * b[at]; }
  return aa && bb ? dot / Math.sqrt(aa * bb) : 0;
}

function showVectors(vectors) {
  const first = vectors[0];
  const length = Math.sqrt(first.reduce((sum, n) => sum + n * n, 0));
  const words = el("p", { className: "quiet", textContent: `${vectors.length === 1 ? "A vector" : `${vectors.length} vectors`} of ${first.length} numbers, the first of length ${length.toFixed(3)}: ${first.slice(0, 6).map((n) => n.toFixed(4)).join(", ")}, …` });
  if (vectors.length !== 2 || vectors[1].length !== first.length) return el("div", {}, words);
  const similar = cosine(first, vectors[1]);
  return el("div", {}, el("div", { className: "quiet", textContent: "Cosine similarity of the two texts" }), el("div", { className: "big", textContent: similar.toFixed(3) }),
    el("meter", { min: 0, max: 1, value: Math.max(0, similar), attrs: { "aria-label": "similarity" } }), words);
}

const shortened = (text) => text.length > 20000 ? `${text.slice(0, 20000)}\n… (${text.length - 20000} more characters; Copy has them all)` : text;

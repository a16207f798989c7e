// The plans that `invoke capacity plan --publish` has put beside the models: their tables and plots.
import { $, el, fill, table } from "./dom.js";

const NUMBER = /^(-|[\d,.]+( ms| s| %)?)$/; // columns of numbers alone stand to the right

export class Plans {
  /** `call` asks the server; `endpoint` tells the endpoint that is shown, null for none, undefined until that is known. */
  constructor(call, endpoint) {
    this.call = call;
    this.endpoint = endpoint;
    this.list = [];
    this.shown = null; // which plan of which endpoint, and when it was put there
    $("plan").addEventListener("change", () => this.refresh());
  }

  /** Asks what plans there are, and for the chosen one where it is not shown already. Raises what the server says. */
  async refresh() {
    const endpoint = this.endpoint();
    if (endpoint === undefined) return;
    this.list = endpoint ? (await (await this.call("plans", { endpoint })).json()).plans : [];
    if (endpoint !== this.endpoint()) return;
    const wanted = this.list.find((one) => one.name === $("plan").value) ?? this.list[0];
    const words = this.list.map((one) => el("option", { value: one.name, textContent: one.name, selected: one === wanted }));
    if ([...$("plan").options].map((one) => one.value).join("\n") !== this.list.map((one) => one.name).join("\n")) $("plan").replaceChildren(...words);
    $("plan-tools").hidden = !wanted;
    $("plan-none").hidden = Boolean(wanted);
    const now = wanted ? [endpoint, wanted.name, wanted.put].join("\n") : null;
    if (now === this.shown) return;
    if (!wanted) $("plan-shown").replaceChildren();
    else {
      const plan = await (await this.call("plan", { endpoint, plan: wanted.name })).json();
      if (endpoint !== this.endpoint()) return;
      this.show(plan);
    }
    this.shown = now;
  }

  show(plan) {
    $("plan-made").textContent = `made ${new Date(plan.made).toLocaleString()}`;
    fill($("plan-shown"),
      el("p", { textContent: plan.goal }),
      plan.tables.map((one) => {
        const numbers = one.head.map((_, at) => one.rows.length > 0 && one.rows.every((row) => NUMBER.test(row[at] ?? "")) ? "n" : "");
        return el("div", {},
          el("h2", { textContent: one.title }),
          table(one.title, one.head.map((title, at) => [title, numbers[at]]), one.rows.map((row, at) =>
            el("tr", { className: at === one.marked ? "marked" : "" }, row.map((cell, place) => el("td", { textContent: cell, className: numbers[place] ?? "" }))))));
      }),
      plan.pictures.length ? el("div", {},
        el("h2", { textContent: "In pictures" }),
        el("div", { className: "pictures" }, plan.pictures.map((one) =>
          // As an image, whatever stands in it runs nothing and fetches nothing.
          el("img", { alt: one.title, src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(one.svg)}` })))) : null,
      plan.notes.length ? el("div", {},
        el("h2", { textContent: "What the figures rest on" }),
        el("ul", { className: "quiet" }, plan.notes.map((words) => el("li", { textContent: words })))) : null);
  }
}

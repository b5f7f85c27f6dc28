// How an answer decodes: the fields for a method, its options, its draft, its budget and its scorer.

import { el, words } from "./base.js";

const BUDGETS = ["target_passes", "tokens_out", "seconds", "draft_passes", "target_tokens", "drafted", "rounds", "scores"];

export class Way {
  /** Builds the fields into a fieldset; `changed` is called when something is chosen. */
  constructor(fieldset, title, changed) {
    this.method = el("select", { onchange: () => (this.showOptions(), changed(this)) });
    this.options = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
    this.draft = el("select");
    this.scorer = el("select");
    this.entry = el("select", { "aria-label": `Budget of ${title}` }, el("option", { value: "" }, "no budget"));
    this.entry.append(...BUDGETS.map((name) => el("option", { value: name }, words(name))));
    this.cap = el("input", { type: "number", min: "0.1", step: "any", value: "50", "aria-label": `Cap of the budget of ${title}`, disabled: true });
    this.entry.addEventListener("change", () => (this.cap.disabled = !this.entry.value));
    this.optionsField = el("label", { class: "field" }, "Options", this.options);
    this.scorerField = el("label", { class: "field" }, "Scorer", this.scorer);
    fieldset.append(
      el("legend", {}, title),
      el("label", { class: "field" }, "Method", this.method),
      this.optionsField,
      el("label", { class: "field" }, "Draft", this.draft),
      el("div", { class: "field" }, "Budget", el("div", { class: "budget" }, this.entry, this.cap)),
      this.scorerField,
    );
  }

  /** Offers methods, grouped by their families. */
  offer(methods, chosen) {
    this.methods = new Map(methods.map((method) => [method.id, method]));
    const families = Map.groupBy(methods, (method) => method.family);
    const groups = [...families].map(([family, members]) => el("optgroup", { label: family }, ...members.map(({ id }) => el("option", { value: id }, id))));
    this.method.replaceChildren(...groups);
    this.method.value = this.methods.has(chosen) ? chosen : methods[0].id;
    this.showOptions();
  }

  offerDrafts(names) {
    const before = this.draft.value;
    this.draft.replaceChildren(el("option", { value: "" }, "the method’s own"), ...names.map((name) => el("option", {}, name)));
    this.draft.value = names.includes(before) ? before : "";
  }

  offerScorers(names) {
    this.scorers = names;
    this.showScorers();
  }

  get about() {
    return this.methods.get(this.method.value);
  }

  showOptions() {
    const { options } = this.about;
    this.options.value = "";
    this.options.placeholder = options.slice(0, 2).map(({ name, default: value }) => `${name}=${value ?? "…"}`).join(",");
    this.optionsField.hidden = options.length === 0;
    this.scorer.value = "";
    this.showScorers();
  }

  /** Offers scorers where the method takes one, and "none" where it can do without. */
  showScorers() {
    const { needs, takes } = this.about;
    const before = this.scorer.value;
    const none = needs.includes("scorer") ? [] : [el("option", { value: "" }, "none")];
    this.scorer.replaceChildren(...none, ...(this.scorers ?? []).map((name) => el("option", {}, name)));
    if ([...this.scorer.options].some(({ value }) => value === before)) this.scorer.value = before;
    this.scorerField.hidden = ![...needs, ...takes].includes("scorer");
  }

  /** The method with its options, as requests name it. */
  get label() {
    return this.method.value + (this.options.value.trim() ? `:${this.options.value.trim()}` : "");
  }

  /** The fields of a request. */
  get fields() {
    const fields = { method: this.label };
    if (this.draft.value) fields.draft = this.draft.value;
    if (!this.scorerField.hidden && this.scorer.value) fields.scorer = this.scorer.value;
    if (this.entry.value) fields.budget = { [this.entry.value]: Number(this.cap.value) };
    return fields;
  }
}

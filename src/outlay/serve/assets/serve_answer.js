// One answer: its text coloured by what drafted it, what it has spent so far, and how it ended.

import { el, grouped, originLegend, originTints, seconds, short, words, bytes, flops } from "./base.js";

const FIGURES = [
  ["tokens", (ledger) => grouped(ledger.tokens_out)],
  ["target passes", (ledger) => grouped(ledger.target_passes)],
  ["tokens a pass", (ledger) => (ledger.target_passes ? (ledger.tokens_out / ledger.target_passes).toFixed(2) : "–")],
  ["drafts accepted", (ledger) => (ledger.drafted ? `${Math.round((100 * ledger.accepted) / ledger.drafted)} %` : "–")],
  ["time", (ledger, time) => seconds(time)],
  ["tokens a second", (ledger, time) => (time > 0 && ledger.tokens_out ? short(ledger.tokens_out / time) : "–")],
];

const AMOUNTS = { flops, weight_bytes: bytes, kv_bytes: bytes, seconds };

export class Answer {
  /** `most` is how many tokens the answer can have, for the bar of its progress. */
  constructor(title, most) {
    this.most = most;
    this.started = performance.now();
    this.origins = new Map();
    this.content = this.thoughtText = "";
    this.ledger = null;
    this.calls = [];
    this.state = el("span", { class: "state" }, "waiting");
    this.bar = el("span");
    this.text = el("div", { class: "text" });
    this.thoughts = el("div", { class: "thoughts", hidden: true });
    this.canvas = el("div", { class: "cells", hidden: true, role: "img" });
    this.rounds = 0;
    this.legend = el("div");
    this.figures = FIGURES.map(() => el("dd", {}, "–"));
    const spent = FIGURES.map(([name], i) => el("div", {}, el("dt", {}, name), this.figures[i]));
    this.all = el("details", { hidden: true }, el("summary", {}, "The whole ledger"));
    this.element = el(
      "article",
      { class: "answer running", "aria-label": `Answer by ${title}` },
      el("header", {}, el("h2", {}, title), this.state),
      el("div", { class: "track", "aria-hidden": "true" }, this.bar),
      this.thoughts,
      this.canvas,
      this.text,
      this.legend,
      el("dl", { class: "spent" }, ...spent),
      this.all,
    );
  }

  get seconds() {
    return (performance.now() - this.started) / 1000;
  }

  /** Adds a chunk of the stream. */
  add(chunk) {
    const choice = chunk.choices[0];
    if (choice) this.addDelta(choice.delta, chunk.outlay?.origin ?? "");
    if (choice?.finish_reason && chunk.outlay?.method) this.ended = chunk.outlay;
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.outlay?.filled) this.fill(chunk.outlay.round, chunk.outlay.filled);
    if (chunk.outlay?.ledger) this.spend(chunk.outlay.ledger);
  }

  addDelta(delta, origin) {
    if (delta.reasoning_content) {
      this.thoughts.hidden = false;
      this.thoughtText += delta.reasoning_content;
      this.thoughts.append(delta.reasoning_content);
    }
    if (delta.content) {
      this.content += delta.content;
      if (this.state.textContent === "waiting") this.state.textContent = "writing";
      this.text.append(this.span(delta.content, origin));
    }
    for (const call of delta.tool_calls ?? []) {
      if (call.function.name) {
        this.calls[call.index] = el("div", { class: "call" }, `${call.function.name} `);
        this.text.after(this.calls[call.index]);
      }
      this.calls[call.index].append(call.function.arguments ?? "");
    }
  }

  /** Writes what a round of a canvas filled; rounds are tinted from the first to the last. */
  fill(round, filled) {
    this.canvas.hidden = false;
    this.rounds = Math.max(this.rounds, round);
    for (const [place, text] of Object.entries(filled)) {
      while (this.canvas.children.length <= Math.max(place, this.most - 1)) this.canvas.append(el("span", { class: "mask" }, "·"));
      const cell = this.canvas.children[place];
      cell.className = "token";
      cell.textContent = text;
      cell.dataset.round = round;
      cell.title = `round ${round}`;
    }
    const tints = originTints(Array.from({ length: this.rounds }, (_, i) => `round ${i + 1}`));
    for (const cell of this.canvas.children) if (cell.dataset.round) this.paint(cell, tints.get(`round ${cell.dataset.round}`));
    const done = [...this.canvas.children].filter((cell) => cell.dataset.round).length;
    this.canvas.setAttribute("aria-label", `Canvas after round ${this.rounds}: ${done} of ${this.canvas.children.length} positions filled`);
  }

  span(text, origin) {
    if (!this.origins.has(origin)) {
      this.origins.set(origin, []);
      this.tint();
    }
    const span = el("span", { class: "token", title: origin ? `drafted: ${origin}` : null }, text);
    this.origins.get(origin).push(span);
    this.paint(span, this.tints.get(origin));
    return span;
  }

  /** Chooses colours anew when another origin has come, so that each keeps one of its own. */
  tint() {
    this.tints = originTints([...this.origins.keys()]);
    for (const [origin, spans] of this.origins) for (const span of spans) this.paint(span, this.tints.get(origin));
    this.legend.replaceChildren(...(this.origins.size > 1 ? [originLegend([...this.origins.keys()], this.tints)] : []));
  }

  paint(span, tint) {
    span.classList.toggle("tinted", Boolean(tint));
    if (tint) span.style.setProperty("--tint", tint);
  }

  spend(ledger) {
    this.ledger = ledger;
    FIGURES.forEach(([, figure], i) => (this.figures[i].textContent = figure(ledger, this.seconds)));
    this.bar.style.transform = `scaleX(${Math.min(1, ledger.tokens_out / this.most)})`;
  }

  /** Says how the answer ended; `first` where it was the first of two. */
  finish(first) {
    this.element.classList.remove("running");
    const reason = this.ended?.finish_reason;
    const why = { stop: "complete", length: "cut at its length", budget: `budget of ${words(this.ended?.cap ?? "")} spent` };
    this.state.textContent = `${why[reason] ?? "stopped"}${first ? ", first" : ""}`;
    this.state.classList.toggle("first", first);
    this.bar.style.transform = "scaleX(1)";
    if (this.ledger) this.showAll();
    if (!this.content && !this.calls.length) this.text.append(el("span", { class: "note" }, "No text."));
    return `${this.content.length} characters in ${seconds(this.seconds)}`;
  }

  fail(message) {
    this.element.classList.remove("running");
    this.state.textContent = message;
    this.state.classList.add("failed");
  }

  showAll() {
    const { extras, ran_on: ranOn, ...entries } = this.ledger;
    const rows = Object.entries({ ...entries, ...extras }).filter(([, amount]) => amount);
    const told = rows.map(([name, amount]) => [words(name), (AMOUNTS[name] ?? short)(amount)]);
    if (this.usage) told.push(["prompt tokens", `${grouped(this.usage.prompt_tokens)}, ${grouped(this.usage.prompt_tokens_details.cached_tokens)} of them cached`]);
    if (this.ended) told.push(["method", this.ended.method], ["seed", String(this.ended.seed)]);
    if (ranOn.length) told.push(["ran on", ranOn.join(", ")]);
    const body = told.map(([name, amount]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, amount)));
    this.all.append(el("table", {}, el("tbody", {}, ...body)));
    this.all.hidden = false;
  }
}

// The chat page: settings, the conversation, and one or two answers at a time.

import { $, el, sayReady, startTheme } from "./base.js";
import { chat, list, ServerError, useKey } from "./serve_api.js";
import { Answer } from "./serve_answer.js";
import { Way } from "./serve_way.js";

const IDEAS = [
  "Why is the sky blue?",
  "Write a Python function that parses a CSV line, with tests.",
  "List the planets, one a line, each with its diameter.",
];

let models = [];
let history = []; // the messages that the next answer reads
let running = null; // what stops the answers at work

const wayA = new Way($("way-a"), "How to decode", explain);
const wayB = new Way($("way-b"), "Against", explain);

function explain(way) {
  const { summary, exact, needs } = way.about;
  const facts = [summary, exact ? "exact" : "not exact", needs.length ? `needs ${needs.join(", ")}` : null];
  $("method-says").textContent = `${way.method.value}: ${facts.filter(Boolean).join("; ")}.`;
}

async function load() {
  try {
    models = await list("/v1/models");
    const methods = await list("/v1/methods");
    const modelChosen = models[0].outlay.method?.split(":")[0];
    wayA.offer(methods, modelChosen ?? "greedy");
    wayB.offer(methods, "greedy");
    $("model").replaceChildren(...models.map(({ id }) => el("option", {}, id)));
    chooseModel();
    explain(wayA);
    $("key-field").hidden = !$("key").value;
  } catch (error) {
    if (!(error instanceof ServerError) || error.status !== 401) return say(`The server can’t be reached: ${error.message}`, true);
    $("key-field").hidden = false;
    $("key").focus();
    say("This server asks for an API key.", true);
  }
}

function chooseModel() {
  const { id, outlay } = models.find((model) => model.id === $("model").value);
  $("about").textContent = `${id}, ${outlay.fingerprint}, reads ${outlay.context.toLocaleString("en")} tokens`;
  for (const way of [wayA, wayB]) {
    way.offerDrafts(outlay.drafts);
    way.offerScorers(outlay.scorers);
  }
}

/** Tells a screen reader, and with `seen` everybody. */
function say(text, seen = false) {
  $("status").textContent = text;
  if (seen) $("about").textContent = text;
}

function sampling() {
  const given = { temperature: "temperature", top_p: "top-p", seed: "seed", max_completion_tokens: "max-tokens" };
  const filled = Object.entries(given).filter(([, id]) => $(id).value !== "");
  return Object.fromEntries(filled.map(([name, id]) => [name, Number($(id).value)]));
}

async function send() {
  const said = $("prompt").value.trim();
  if (!said || running || !models.length) return;
  $("prompt").value = "";
  fit();
  $("welcome").hidden = true;
  history.push({ role: "user", content: said });
  const ways = $("race").checked ? [wayA, wayB] : [wayA];
  const answers = ways.map((way) => new Answer(way.label, Number($("max-tokens").value) || 200));
  const column = el("div", { class: ways.length > 1 ? "answers two" : "answers" }, ...answers.map(({ element }) => element));
  $("turns").append(el("div", { class: "turn" }, el("p", { class: "said" }, said), column));
  $("composer").scrollIntoView({ block: "end" });
  await answer(ways, answers);
}

async function answer(ways, answers) {
  running = new AbortController();
  $("send").disabled = true;
  $("stop").hidden = false;
  $("again").hidden = true;
  say(answers.length > 1 ? "Two answers are being written." : "The answer is being written.");
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...history];
  const common = { model: $("model").value, messages, ...sampling() };
  if (answers.length > 1 && common.seed === undefined) common.seed = Math.floor(Math.random() * 2 ** 31); // the same draws for both
  const order = [];
  const told = await Promise.all(answers.map((each, i) => write(each, { ...common, ...ways[i].fields }, order, answers.length)));
  running = null;
  $("send").disabled = false;
  $("stop").hidden = true;
  $("again").hidden = false;
  const written = answers.filter((each) => each.content);
  if (written.length) history.push({ role: "assistant", content: written[0].content });
  else history.pop();
  if (written.length > 1 && written[0].content !== written[1].content) offerChoice(written);
  say(told.join(" "));
}

async function write(each, body, order, count) {
  try {
    for await (const chunk of chat(body, running.signal)) {
      const atEnd = scrollY + innerHeight > document.documentElement.scrollHeight - 80;
      each.add(chunk);
      if (atEnd) scrollTo({ top: document.documentElement.scrollHeight });
    }
    order.push(each);
    return `${body.method} is done: ${each.finish(count > 1 && order[0] === each)}.`;
  } catch (error) {
    if (error.name === "AbortError") {
      each.finish(false);
      return `${body.method} was stopped.`;
    }
    each.fail(error.message);
    return `${body.method} failed: ${error.message}.`;
  }
}

/** Lets the reader say which of two answers the conversation goes on with. */
function offerChoice(written) {
  const place = history.length - 1;
  const buttons = written.map((each, i) => {
    const choose = () => {
      if (history[place]?.role !== "assistant") return;
      history[place] = { role: "assistant", content: each.content };
      buttons.forEach((button, j) => show(button, i === j));
    };
    return el("button", { type: "button", class: "keep", onclick: choose });
  });
  const show = (button, chosen) => {
    button.textContent = chosen ? "The chat goes on from here" : "Go on from this one";
    button.setAttribute("aria-pressed", String(chosen));
  };
  buttons.forEach((button, i) => (show(button, i === 0), written[i].element.append(button)));
}

function newChat() {
  history = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("prompt").focus();
}

function fit() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight + 2}px`;
}

function stop() {
  running?.abort();
}

$("ideas").append(
  ...IDEAS.map((idea) =>
    el("button", { type: "button", onclick: () => ((($("prompt").value = idea), fit(), $("prompt").focus())) }, idea),
  ),
);
$("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("prompt").addEventListener("input", fit);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
$("stop").addEventListener("click", stop);
$("again").addEventListener("click", newChat);
$("model").addEventListener("change", chooseModel);
$("race").addEventListener("change", () => ($("way-b").hidden = !$("race").checked));
$("key").addEventListener("change", () => {
  useKey($("key").value);
  load();
});

// On a narrow screen the settings are folded away; on a wide one they can't be.
const narrow = matchMedia("(max-width: 860px)");
const fold = () => ($("fold").open = !narrow.matches);
narrow.addEventListener("change", fold);
fold();

startTheme();
await load();
sayReady();

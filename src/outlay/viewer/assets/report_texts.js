// Two texts of one prompt side by side: tokens tinted by what proposed them, differences marked.

const textAt = new Map(data.texts.map(([contender, prompt, text, spans], place) => [`${contender} ${prompt}`, { place, text, spans }]));
const tints = originTints(data.origins);

function startAnswers() {
  const options = () => data.contenders.map((contender, i) => el("option", { value: i }, contender.label));
  $("left").append(...options());
  $("right").append(...options());
  $("left").value = data.contenders[0].reference;
  $("right").value = data.contenders.findIndex((_, i) => i !== Number($("left").value) || data.contenders.length === 1);
  for (const id of ["left", "right"]) $(id).addEventListener("change", listPrompts);
  $("differing").addEventListener("change", listPrompts);
  $("find").addEventListener("input", listPrompts);
  $("prompt").addEventListener("change", drawTexts);
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  const legend = data.origins.length > 1 ? originLegend(data.origins, tints) : el("ul", { class: "legend" });
  legend.append(el("li", {}, el("span", { class: "swatch differs" }), el("b", {}, "differs from the other")));
  $("text-legend").append(legend);
  listPrompts();
}

const at = (contender, prompt) => textAt.get(`${contender} ${prompt}`);
const sides = () => [Number($("left").value), Number($("right").value)];

/** Lists the prompts that the filter leaves, and keeps the chosen one if it is among them. */
function listPrompts() {
  const sought = $("find").value.trim().toLowerCase();
  const [left, right] = sides();
  const isWanted = ({ index, text }) =>
    (!sought || text.toLowerCase().includes(sought)) && (!$("differing").checked || at(left, index)?.text !== at(right, index)?.text);
  const wanted = data.prompts.filter(isWanted);
  const chosen = $("prompt").value;
  $("prompt").replaceChildren(...wanted.map(({ index, text }) => el("option", { value: index }, `${index + 1}. ${text.slice(0, 90)}`)));
  if (wanted.some(({ index }) => String(index) === chosen)) $("prompt").value = chosen;
  $("found").textContent = `${grouped(wanted.length)} of ${count(data.prompts.length, "prompt")}`;
  drawTexts();
}

function step(by) {
  const options = $("prompt").options;
  const next = Math.min(Math.max($("prompt").selectedIndex + by, 0), options.length - 1);
  if (next >= 0) $("prompt").selectedIndex = next;
  drawTexts();
}

function drawTexts() {
  const index = $("prompt").value === "" ? -1 : Number($("prompt").value);
  const { selectedIndex, options } = $("prompt");
  $("before").disabled = selectedIndex <= 0;
  $("after").disabled = selectedIndex >= options.length - 1;
  drawQuestion(index);
  const [left, right] = sides();
  const texts = [left, right].map((contender) => (at(contender, index) ? data.written[at(contender, index).text] : null));
  const [marksLeft, marksRight] = texts[0] && texts[1] ? differing(...texts) : [[], []];
  drawText("left-text", left, index, marksLeft);
  drawText("right-text", right, index, marksRight);
}

function drawQuestion(index) {
  const prompt = data.prompts.find((each) => each.index === index);
  if (!prompt) return $("question").replaceChildren("No prompt is left by the filter.");
  const answer = prompt.answer === null || prompt.answer === undefined ? null : el("p", { class: "answer" }, `expected: ${prompt.answer}`);
  return $("question").replaceChildren(prompt.text, ...(answer ? [answer] : []));
}

function drawText(id, contender, index, marks) {
  const found = at(contender, index);
  if (!found) return $(id).replaceChildren(el("p", { class: "facts" }, index < 0 ? "" : "No text: the run failed or was not made."));
  const origins = unrolled(data.proposed[found.spans]);
  const spans = data.written[found.text].map((piece, i) => tokenOf(data.pieces[piece], tints.get(data.origins[origins[i]]), marks[i]));
  return $(id).replaceChildren(facts(found.place), el("p", { class: "tokens" }, ...spans));
}

function tokenOf(text, tint, differs) {
  const kinds = ["token", tint && "tinted", differs && "differs"].filter(Boolean).join(" ");
  return el(differs ? "mark" : "span", { class: kinds, style: tint ? `--tint: ${tint}` : null }, text);
}

/** Spans written as origin, length, origin, length as one origin for each token. */
function unrolled(spans) {
  return spans.flatMap((each, i) => (i % 2 ? [] : Array(spans[i + 1]).fill(each)));
}

function facts(place) {
  const answer = data.answers[place];
  const run = (name, unit) => figure(`runs.${answer.run}.${name}`, unit, answer[name]);
  const parts = [[run("tokens_out", "number"), " tokens"]];
  if (answer.quality !== undefined) parts.push(["quality ", run("quality", "quality")]);
  if (answer.first_difference !== undefined) parts.push(["differs from the reference after ", run("first_difference", "number"), " tokens"]);
  parts.push([`finished: ${answer.finish_reason}`]);
  if (answer.trace) parts.push([el("a", { href: answer.trace.replace(/\.jsonl$/, ".html") }, "trace")]);
  return el("p", { class: "facts" }, ...parts.flatMap((part, i) => (i ? [" · ", ...part] : part)));
}

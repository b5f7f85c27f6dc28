// The trace page: one run at a time, its parts bound together by the chosen pass and the chosen node.

const data = JSON.parse($("data").textContent);
const labels = data.spellings.map(label);
const runs = data.runs.map((run) => readRun(run, data.spellings, labels));
const sharedWith = sharers(runs);
const tree = new TreeView($("tree"), showNode);
new TreeInput(tree);
const charts = new Charts($("charts"), choosePass);
const canvasView = new CanvasView($("canvas"), (told) => ($("canvas-says").textContent = told), chooseFilled);
let run;

function showRun(index) {
  run = runs[index];
  const tints = originTints(run.origins);
  const title = `${run.method || "unknown method"} wrote ${count(run.path.length, "token")} in ${count(targetPasses(), "target pass", "target passes")}`;
  $("title").textContent = title;
  document.title = `${run.method} · outlay trace`;
  $("subtitle").textContent = `${run.model} · ${run.reason ? `finished: ${run.reason}` : "not finished"}`;
  showWarning();
  showFigures();
  showText(run, tints, (node) => tree.pick(node));
  $("canvas-part").hidden = !run.canvas;
  $("tree-part").hidden = Boolean(run.canvas);
  canvasView.show(run, labels);
  charts.show(run);
  tree.show(run);
  showPaints();
  showPassControls();
  showNode(-1);
}

const targetPasses = () => run.passes.model.filter((model) => model === "target").length;

function showWarning() {
  const said = [];
  if (data.cut) said.push(`Line ${data.cut}, the last of the file, is broken off; what is before it is shown.`);
  if (!run.reason) said.push("The trace ends before this run does; the text is what was committed so far.");
  const unknown = Object.entries(run.unknown).map(([kind, times]) => `${kind} (${grouped(times)})`);
  if (unknown.length) said.push(`Events that this page does not know are left out: ${unknown.join(", ")}.`);
  $("warning").hidden = !said.length;
  $("warning").textContent = said.join(" ");
}

function showFigures() {
  const fates = [0, 0, 0, 0, 0];
  run.nodes.fate.forEach((fate) => fates[fate]++);
  const passes = targetPasses();
  if (run.canvas) return showFigureList(canvasFigures());
  const figures = [
    ["tokens in the text", grouped(run.path.length)],
    ["target passes", grouped(passes)],
    ["tokens a target pass", passes ? (run.path.length / passes).toFixed(2) : "–"],
    ["nodes below the prompt", grouped(run.size - run.prompt)],
    ["rows of the memory", grouped(run.memory?.rows ?? 0)],
    ["pruned", grouped(fates[PRUNED])],
    ["committed, not in the text", grouped(fates[COMMITTED])],
    ["still open at the end", grouped(fates[OPEN])],
    ["most in the cache", bytes(Math.max(...run.passes.cache_bytes, 0))],
    ["time", seconds(run.end)],
  ].filter(([, value], i) => i < 4 || value !== "0");
  showFigureList(figures);
}

function canvasFigures() {
  const filled = run.size - run.prompt;
  const rounds = run.canvas.rounds.length;
  return [
    ["tokens in the text", grouped(run.path.length)],
    ["positions of the canvas", grouped(run.canvas.length)],
    ["rounds", grouped(rounds)],
    ["positions filled a round", rounds ? (filled / rounds).toFixed(2) : "–"],
    ["target passes", grouped(targetPasses())],
    ["most in the cache", bytes(Math.max(...run.passes.cache_bytes, 0))],
    ["time", seconds(run.end)],
  ];
}

function showFigureList(figures) {
  $("figures").replaceChildren(...figures.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

/** Marks the token of a position of the canvas in the text. */
function chooseFilled(position) {
  const node = run.nodes.position.indexOf(position, run.prompt);
  if (node >= 0) showNode(node);
}

// Passes.

function showPassControls() {
  const { time } = run.passes;
  $("time-note").textContent = time.length ? "Solid are this run’s rows, faint those of other runs in the same pass. Choose a pass to see what there was then." : "The trace holds no pass.";
  $("pass").max = Math.max(time.length - 1, 0);
  $("pass").disabled = !time.length;
  $("passes").open = false;
  endOfRun();
}

function choosePass(index) {
  charts.chosen = index;
  tree.time = run.passes.time[index];
  tree.lit = new Set(run.passes.nodes[index]);
  if (run.memory && ["encoder", "target"].includes(run.passes.model[index])) tree.lit.add(MEMORY);
  $("pass").value = index;
  const computed = run.passes.nodes[index];
  if (computed.length) tree.reveal(computed.at(-1));
  sayPass(describePass(index));
}

function endOfRun() {
  charts.chosen = -1;
  tree.time = Infinity;
  tree.lit = new Set();
  $("pass").value = $("pass").max;
  sayPass(`All ${count(run.passes.time.length, "pass", "passes")}.`);
}

function sayPass(text) {
  $("pass-says").textContent = text;
  $("pass").setAttribute("aria-valuetext", text);
  charts.draw();
  tree.draw();
  for (const span of $("tokens").children) span.classList.toggle("later", run.nodes.born[span.dataset.node] > tree.time);
}

function describePass(index) {
  const at = (column) => run.passes[column][index];
  const rows = `${count(at("rows"), "row")} of ${grouped(at("width"))}`;
  return `Pass ${grouped(index + 1)} of ${grouped(run.passes.time.length)}, ${at("model")}: ${rows}, ${seconds(at("seconds"))}, ${shared(index)}, cache ${bytes(at("cache_bytes"))}.`;
}

function shared(index) {
  const others = run.passes.runs[index] - 1;
  if (!others) return "this run alone";
  const named = sharedWith(run, index).map((other) => `run ${other + 1}`);
  return `with ${named.length === others ? named.join(", ") : count(others, "other run")}`;
}

function showPassTable() {
  const holder = $("passes").lastElementChild;
  const header = ["pass", "model", "ended", "took", "rows", "of", "shared", "cache"];
  const line = (i) => {
    const at = (column) => run.passes[column][i];
    return [grouped(i + 1), at("model"), seconds(at("time")), seconds(at("seconds")), grouped(at("rows")), grouped(at("width")), shared(i), bytes(at("cache_bytes"))];
  };
  const lines = (from, to) => Array.from({ length: Math.max(to - from, 0) }, (_, i) => line(from + i));
  const total = run.passes.time.length;
  const table = plainTable(header, lines(0, Math.min(500, total)));
  const more = el("button", { type: "button", onclick: grow }, "Show 500 more");
  let shown = 500;
  function grow() {
    table.tBodies[0].append(...plainTable(header, lines(shown, Math.min(shown + 500, total))).tBodies[0].rows);
    shown += 500;
    more.hidden = shown >= total;
  }
  more.hidden = shown >= total;
  holder.replaceChildren(table, more);
}

// Nodes.

function showNode(node) {
  document.querySelector(".token.chosen")?.classList.remove("chosen");
  if (node === MEMORY) return showFacts(memoryLabel(run.memory), memoryFacts());
  if (node < 0) {
    $("node").replaceChildren(el("p", { class: "note" }, "Choose a node to see what is known of it."));
    return;
  }
  document.querySelector(`.token[data-node="${node}"]`)?.classList.add("chosen");
  const { nodes } = run;
  const pass = run.passOf.get(node);
  const facts = [
    ["token", nodes.token[node]],
    ["position", grouped(nodes.position[node])],
    ["proposed by", originName(run.origins[nodes.origin[node]])],
    ["in the end", FATE_WORDS[nodes.fate[node]]],
    ["grown at", seconds(nodes.born[node])],
    ["settled at", nodes.settled[node] === null ? "–" : seconds(nodes.settled[node])],
    ["computed in pass", pass === undefined ? "none of this run" : grouped(pass + 1)],
    ["nodes below", grouped(run.below[node])],
    ...(run.rated[node] ? [["this branch took", `${grouped(run.below[node] + 1)} tokens, ${grouped(run.rated[node])} rated steps`]] : []),
    ...Object.entries(run.marks).flatMap(([name, mark]) => markOf(name, mark, node)),
  ];
  showFacts(run.labelOf(node), facts);
}

function showFacts(title, facts) {
  const rows = facts.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(value))));
  $("node").replaceChildren(el("h3", {}, title), el("table", {}, el("tbody", {}, ...rows)));
}

function memoryFacts() {
  const pass = run.passes.model.indexOf("encoder");
  const readers = run.passes.model.filter((model) => model === "target").length;
  return [
    ["what it is", "what the encoder made of the input; every node reads it"],
    ["keys and values", bytes(run.memory.bytes)],
    ["made in pass", pass < 0 ? "none of this run: another had the same input" : grouped(pass + 1)],
    ["made at", pass < 0 ? "–" : seconds(memoryMade(run))],
    ["passes that read it", grouped(readers)],
  ];
}

function markOf(name, mark, node) {
  const at = mark.nodes.indexOf(node);
  if (at < 0) return [];
  const value = mark.values[at];
  return [[words(name), typeof value === "number" ? short(value) : value]];
}

// Colours of the tree: by origin, or by any mark that a method made.

function showPaints() {
  const names = Object.keys(run.marks);
  $("paint").replaceChildren(el("option", { value: "" }, "by what proposed it"), ...names.map((name) => el("option", { value: name }, `by ${words(name)}`)));
  choosePaint();
}

function choosePaint() {
  const mark = run.marks[$("paint").value];
  const tints = originTints(run.origins);
  const fates = [TEXT, COMMITTED, PRUNED, OPEN].filter((fate) => run.nodes.fate.includes(fate));
  const legend = fates.map((fate) => el("li", {}, el("span", { class: `fate ${FATES[fate]}` }), FATE_WORDS[fate]));
  tree.paint = mark ? paintByMark(mark) : null;
  const colours = mark ? markLegend(mark) : run.origins.slice(1).map((origin) => el("li", {}, swatch(tints.get(origin)), originName(origin)));
  $("tree-legend").replaceChildren(el("ul", { class: "legend" }, ...legend, ...colours));
  tree.draw();
}

const isNumeric = (mark) => mark.values.some((value) => typeof value === "number");

function paintByMark(mark) {
  const byNode = new Map(mark.nodes.map((node, i) => [node, mark.values[i]]));
  if (isNumeric(mark)) {
    const [least, most] = range(mark.values);
    return (node) => (typeof byNode.get(node) === "number" ? ramp((byNode.get(node) - least) / (most - least || 1)) : null);
  }
  const kinds = [...new Set(mark.values)];
  const colours = kinds.map((_, i) => colour(`var(${TINTS[i % TINTS.length]})`));
  return (node) => (byNode.has(node) ? colours[kinds.indexOf(byNode.get(node))] : null);
}

function markLegend(mark) {
  if (!isNumeric(mark)) {
    return [...new Set(mark.values)].map((kind, i) => el("li", {}, swatch(`var(${TINTS[i % TINTS.length]})`), String(kind)));
  }
  const [least, most] = range(mark.values);
  const stops = [0, 0.25, 0.5, 0.75, 1].map(ramp).join(", ");
  return [el("li", {}, short(least), el("span", { class: "scale", style: `background: linear-gradient(to right, ${stops})` }), short(most))];
}

function range(values) {
  const numbers = values.filter((value) => typeof value === "number");
  return [numbers.reduce((a, b) => Math.min(a, b)), numbers.reduce((a, b) => Math.max(a, b))];
}

function listen() {
  $("run").addEventListener("change", () => showRun(Number($("run").value)));
  $("pass").addEventListener("input", () => choosePass(Number($("pass").value)));
  $("pass-end").addEventListener("click", endOfRun);
  $("passes").addEventListener("toggle", () => $("passes").open && showPassTable());
  $("paint").addEventListener("change", choosePaint);
  $("zoom-in").addEventListener("click", () => tree.zoom(1.25));
  $("zoom-out").addEventListener("click", () => tree.zoom(0.8));
  $("fit").addEventListener("click", () => tree.fit());
  $("fold").addEventListener("click", () => tree.foldPruned());
  $("unfold").addEventListener("click", () => tree.unfold());
  document.addEventListener("keydown", (event) => {
    const step = { "[": -1, "]": 1 }[event.key];
    if (!step || !run.passes.time.length) return;
    const from = charts.chosen < 0 ? (step > 0 ? -1 : run.passes.time.length) : charts.chosen;
    choosePass(Math.min(Math.max(from + step, 0), run.passes.time.length - 1));
  });
}

$("file").textContent = data.name;
$("runs").hidden = runs.length < 2;
$("run").append(...runs.map((each, i) => el("option", { value: i }, `Run ${each.run + 1} of ${runs.length}`)));
themeChanged.push(() => charts.draw(), () => tree.draw(), () => canvasView.draw());
startTheme();
showRun(0);
listen();
sayReady();

// The text with its tokens tinted by what proposed them, and the acceptance rate of each origin.

function tokenSpan(piece, tint, attributes = {}) {
  const kinds = ["token", tint && "tinted", piece.special && "special"].filter(Boolean).join(" ");
  return el("span", { class: kinds, style: tint ? `--tint: ${tint}` : null, ...attributes }, piece.text);
}

/** Writes the text of a run; `choose(node)` is called for a token that is clicked. */
function showText(run, tints, choose) {
  const tintOf = (node) => tints.get(run.origins[run.nodes.origin[node]]);
  const spans = pieces(run, run.path).map((piece, i) => tokenSpan(piece, tintOf(run.path[i]), { "data-node": run.path[i] }));
  $("tokens").replaceChildren(...spans);
  $("tokens").onclick = (event) => event.target.dataset.node && choose(Number(event.target.dataset.node));
  const prompt = Array.from({ length: run.prompt }, (_, node) => node);
  $("prompt").firstElementChild.textContent = `Prompt, ${count(run.prompt, "token")}`;
  $("prompt-tokens").replaceChildren(...pieces(run, prompt).map((piece) => tokenSpan(piece)));
  $("legend").replaceChildren(...(run.canvas ? [roundLegend(run)] : run.origins.length > 1 ? [originLegend(run.origins, tints)] : []));
  showOrigins(run);
}

/** A table of how many tokens each origin proposed and how many of them were accepted; only where there are drafts. */
function showOrigins(run) {
  $("origins").hidden = run.origins.length < 2 || Boolean(run.canvas);
  const rows = run.origins.map((origin, index) => {
    const mine = run.nodes.origin.flatMap((each, node) => (each === index && node >= run.prompt ? [run.nodes.fate[node]] : []));
    const accepted = mine.filter((fate) => fate === TEXT).length;
    const rejected = mine.filter((fate) => fate === PRUNED).length;
    const rate = mine.length ? `${((100 * accepted) / mine.length).toFixed(1)} %` : "–";
    return [originName(origin), grouped(mine.length), grouped(accepted), grouped(rejected), rate];
  });
  const header = ["proposed by", "proposed", "accepted", "rejected", "acceptance rate"];
  $("origins").replaceChildren(plainTable(header, rows));
}

/** From the first round's colour to the last one's. */
function roundLegend(run) {
  const stops = [0, 0.25, 0.5, 0.75, 1].map(ramp).join(", ");
  const scale = el("span", { class: "scale", style: `background: linear-gradient(to right, ${stops})` });
  return el("ul", { class: "legend" }, el("li", {}, "filled in round 1", scale, grouped(run.canvas.rounds.length)));
}

function plainTable(header, rows) {
  const head = el("tr", {}, ...header.map((each) => el("th", { scope: "col" }, each)));
  const body = rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((each) => el("td", {}, each))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
}

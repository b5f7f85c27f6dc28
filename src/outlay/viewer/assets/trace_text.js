// The text with its tokens tinted by what proposed them, and how many each proposed.

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
  $("legend").replaceChildren(...(run.origins.length > 1 ? [originLegend(run.origins, tints)] : []));
  showOrigins(run);
}

/** A table of how many tokens each origin grew and how many of them reached the text; only where there are drafts. */
function showOrigins(run) {
  $("origins").hidden = run.origins.length < 2;
  const rows = run.origins.map((origin, index) => {
    const mine = run.nodes.origin.flatMap((each, node) => (each === index && node >= run.prompt ? [run.nodes.fate[node]] : []));
    const inText = mine.filter((fate) => fate === TEXT).length;
    const cut = mine.filter((fate) => fate === CUT).length;
    const share = mine.length ? `${((100 * inText) / mine.length).toFixed(1)} %` : "–";
    return [originName(origin), grouped(mine.length), grouped(inText), grouped(cut), share];
  });
  const header = ["proposed by", "grown", "in the text", "cut", "share in the text"];
  $("origins").replaceChildren(plainTable(header, rows));
}

function plainTable(header, rows) {
  const head = el("tr", {}, ...header.map((each) => el("th", { scope: "col" }, each)));
  const body = rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((each) => el("td", {}, each))));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...body));
}

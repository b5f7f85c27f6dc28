// The table: a row for each contender, columns that the reader picks and sorts by.

const USUAL = ["tokens_per_second", "pictures_per_second", "cpu_seconds", "target_passes", "tokens_out", "seconds", "weight_bytes", "kv_bytes"];
const table = { columns: [], sort: null, down: true };

/** Columns that are no measures: how they are read for sorting, and how they are shown. */
const FACTS = {
  identical: {
    title: "same text as its reference",
    value: ({ identical, compared }) => (compared ? identical / compared : null),
    cell: (i) => [figure(`contenders.${i}.identical`, "number"), " of ", figure(`contenders.${i}.compared`, "number")],
  },
  first_difference: {
    title: "tokens before the first difference",
    value: (contender) => contender.first_difference,
    cell: (i) => [figure(`contenders.${i}.first_difference`, "number")],
  },
  errors: { title: "failed runs", value: (contender) => contender.errors, cell: (i) => [figure(`contenders.${i}.errors`, "number")] },
  unsteady: {
    title: "repeats with another text",
    value: (contender) => contender.unsteady,
    cell: (i) => [figure(`contenders.${i}.unsteady`, "number")],
  },
};

function startTable() {
  const names = entryNames();
  const every = [
    ...(hasQuality() ? ["quality"] : []),
    ...names.flatMap((name) => [`entry:${name}`, `ratio:${name}`]),
    ...Object.keys(FACTS).filter((key) => NOUN === "prompt" || key === "errors"),
  ];
  const shown = (key) => {
    const [kind, name] = key.split(":");
    if (kind === "ratio") return name === SPEED;
    if (kind === "entry") return USUAL.includes(name) && varies(key);
    return !["errors", "unsteady"].includes(kind) || data.contenders.some((contender) => contender[kind]);
  };
  table.columns = every.map((key) => ({ key, shown: shown(key) }));
  const first = (key) => (/(tokens|pictures)_per_second/.test(key) ? 0 : key === "quality" ? 1 : 2);
  table.columns.sort((a, b) => first(a.key) - first(b.key));
  $("columns").lastElementChild.append(...table.columns.map(columnBox));
  const budgets = new Set(data.contenders.map((contender) => contender.reference)).size > 1;
  const reference = budgets ? "the reference under the same budget" : data.contenders[data.contenders[0].reference].label;
  $("figures-note").textContent = `Medians over the ${NOUN}s, quality ${NOUN === "picture" ? "over all of them" : "as a mean"}, with 95 % intervals below. Ratios are to ${reference}, paired ${NOUN} by ${NOUN}; bold where the interval leaves no doubt that it is better.`;
  drawTable();
}

function columnBox(column) {
  const input = el("input", { type: "checkbox", onchange: () => ((column.shown = input.checked), drawTable()) });
  input.checked = column.shown;
  return el("label", {}, input, columnTitle(column.key));
}

const columnTitle = (key) => FACTS[key]?.title ?? titleOf(key);

function drawTable() {
  const shown = table.columns.filter((column) => column.shown);
  const heads = [headCell("label", "method"), ...shown.map(({ key }) => headCell(key, columnTitle(key)))];
  const rows = sortedRows().map((i) => el("tr", {}, methodCell(i), ...shown.map(({ key }) => valueCell(i, key))));
  $("table").replaceChildren(el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
}

function headCell(key, title) {
  const sort = table.sort === key ? (table.down ? "descending" : "ascending") : null;
  return el("th", { scope: "col", "aria-sort": sort }, el("button", { type: "button", "data-key": key, onclick: () => sortBy(key, title) }, title));
}

function sortBy(key, title) {
  const startDown = key !== "label";
  [table.sort, table.down] = [key, table.sort === key ? !table.down : startDown];
  drawTable();
  document.querySelector(`#table [data-key="${key}"]`).focus();
  $("sorted").textContent = `Sorted by ${title}, ${table.down ? "largest first" : "smallest first"}.`;
}

const sortValue = (i, key) => {
  if (key === "label") return data.contenders[i].label;
  return FACTS[key] ? FACTS[key].value(data.contenders[i]) : (measured(i, key)?.value ?? null);
};

/** The order of the rows; those without a value come last either way. */
function sortedRows() {
  const order = data.contenders.map((_, i) => i);
  if (!table.sort) return order;
  const values = order.map((i) => sortValue(i, table.sort));
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b) * (table.down ? -1 : 1);
  return order.sort((a, b) => (values[a] === null) - (values[b] === null) || (values[a] === null ? 0 : compare(values[a], values[b])));
}

function methodCell(i) {
  const { label, first_error: error } = data.contenders[i];
  return el("th", { scope: "row", title: error ?? null }, el("span", {}, marker(i), breakable(label)));
}

function valueCell(i, key) {
  if (FACTS[key]) return el("td", {}, ...FACTS[key].cell(i));
  const found = measured(i, key);
  if (!found) return el("td", { class: "none" }, "–");
  const { path, middle, unit } = found;
  return el("td", { class: isSurelyBetter(i, key, found) ? "better" : null }, figure(`${path}.${middle}`, unit), interval(path, unit));
}

function isSurelyBetter(i, key, { low, high }) {
  const [kind, name] = key.split(":");
  if (kind !== "ratio" || data.contenders[i].reference === i || NEITHER.has(name)) return false;
  return GAINS.has(name) ? low > 1 : high < 1;
}

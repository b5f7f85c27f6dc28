// Figures: each is shown with its place in results.json, from which it comes.

const data = JSON.parse($("data").textContent);

/** What the comparison was on: prompts, or pictures. */
const NOUN = data.manifest.noun ?? "prompt";
const SPEED = NOUN === "picture" ? "pictures_per_second" : "tokens_per_second";

const GAINS = new Set(["quality", "tokens_per_second", "pictures_per_second", "accepted"]); // more is better; of all others less is
const NEITHER = new Set(["tokens_out", "drafted"]); // no gain and no cost by itself

/** How an entry of the ledger is written. */
function unitOf(entry) {
  if (entry === "quality" || entry === "seconds" || entry === "flops") return entry;
  if (entry === "cpu_seconds") return "seconds";
  return entry.endsWith("_bytes") ? "bytes" : "number";
}

const WRITERS = {
  number: short,
  bytes,
  flops,
  seconds,
  quality: (value) => (Number.isInteger(value) ? String(value) : value.toFixed(3)),
  ratio: (value) => `${value.toFixed(2)}×`,
};

const write = (value, unit) => WRITERS[unit](value).replace("-", "−");

/** A method's label, which may break where its options are parted. */
function breakable(label) {
  return el("span", {}, ...label.split(/(?<=[:,])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part])));
}

/** What stands at a place such as "contenders.1.quality.mean". */
const lookUp = (path) => path.split(".").reduce((value, key) => value?.[key], data);

/** A figure of the results; a dash where there is none. */
function figure(path, unit, value = lookUp(path)) {
  if (value === null || value === undefined) return el("span", { class: "none" }, "–");
  return el("span", { class: "figure", "data-from": path, "data-unit": unit }, write(value, unit));
}

const interval = (path, unit) => el("span", { class: "interval" }, figure(`${path}.low`, unit), " to ", figure(`${path}.high`, unit));

/** A measure of a contender: its quality, an entry of the ledger, or a ratio to its reference. */
const MEASURES = {
  quality: (contender, index) => measure(contender.quality, `contenders.${index}.quality`, "mean", "quality"),
  entry: (contender, index, name) => measure(contender.entries[name], `contenders.${index}.entries.${name}`, "median", unitOf(name)),
  ratio: (contender, index, name) => measure(contender.ratios[name], `contenders.${index}.ratios.${name}`, "median", "ratio"),
};

function measure(spread, path, middle, unit) {
  if (spread?.[middle] === null || spread?.[middle] === undefined) return null;
  return { value: spread[middle], low: spread.low, high: spread.high, path, middle, unit };
}

const measured = (index, key) => {
  const [kind, name] = key.split(":");
  return MEASURES[kind](data.contenders[index], index, name);
};

const hasQuality = () => data.contenders.some((contender) => contender.quality);
const entryNames = () => [...new Set(data.contenders.flatMap((contender) => Object.keys(contender.entries)))];
const titleOf = (key) => {
  const [kind, name] = key.split(":");
  if (kind === "quality") return data.manifest.metric ? `quality (${data.manifest.metric})` : "quality";
  return kind === "ratio" ? `${words(name)}, ratio` : words(name);
};

// Methods have a colour and a shape; budgets of one method share them.

const PAINTS = ["--blue", "--vermillion", "--green", "--purple", "--orange", "--sky", "--ink"];
const SHAPES = [
  "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0Z",
  "M-5 -5H5V5H-5Z",
  "M0 -6.5L6.2 4.6H-6.2Z",
  "M0 -6.8L6.8 0L0 6.8L-6.8 0Z",
  "M0 6.5L6.2 -4.6H-6.2Z",
  "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
];

function look(index) {
  const methods = [...new Set(data.contenders.map((contender) => contender.method))];
  const number = methods.indexOf(data.contenders[index].method);
  return { paint: `var(${PAINTS[number % PAINTS.length]})`, shape: SHAPES[number % SHAPES.length] };
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function marker(index) {
  const { paint, shape } = look(index);
  const path = svg("path", { class: "shape", d: shape });
  return svg("svg", { class: "marker", viewBox: "-8 -8 16 16", style: `--paint: ${paint}`, "aria-hidden": "true" }, path);
}

// What both pages share: elements, figures as text, colours, the theme.

const $ = (id) => document.getElementById(id);

/** Makes an element: el("a", { href, class, onclick }, "text", child). Attributes that are null or false are left out. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value ?? ""; // where a policy forbids style attributes, too
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const words = (name) => name.replaceAll("_", " ");
const count = (n, one, many = `${one}s`) => `${grouped(n)} ${n === 1 ? one : many}`;
const grouped = (n) => String(n).replace(/\B(?=(\d{3})+(?!\d))/g, ",");

/** A number with three significant digits, whole numbers in full. */
function short(value) {
  if (Number.isInteger(value)) return grouped(value);
  const size = Math.abs(value);
  if (size >= 1000) return grouped(Math.round(value));
  if (size >= 100) return value.toFixed(1);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.001) return value.toFixed(size >= 1 ? 2 : 3);
  return value === 0 ? "0" : value.toExponential(1);
}

function scaled(value, units) {
  let step = 0;
  while (Math.abs(value) >= 999.5 && step < units.length - 1) [value, step] = [value / 1000, step + 1];
  return `${step ? value.toPrecision(3) : short(value)} ${units[step]}`;
}

const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"]);
const flops = (value) => scaled(value, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]);
const seconds = (value) => (value >= 1 ? `${value.toFixed(2)} s` : value >= 0.001 ? `${(1000 * value).toFixed(1)} ms` : `${(1e6 * value).toFixed(0)} µs`);

/** What proposed a token, in words. The model's own choice has no name. */
const originName = (origin) => origin || "the model’s own choice";

const TINTS = ["--green", "--orange", "--purple", "--sky", "--vermillion", "--yellow", "--blue"];

/** A tint for each origin: a ramp for numbered ones such as "round 3", else colours that are easy to tell apart. */
function originTints(origins) {
  const named = origins.filter((origin) => origin !== "");
  const numbers = new Map(named.map((origin) => [origin, Number(/\d+$/.exec(origin)?.[0] ?? NaN)]));
  const values = [...numbers.values()];
  if (named.length > 1 && values.every((value) => !Number.isNaN(value))) {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return new Map(named.map((origin) => [origin, ramp((numbers.get(origin) - least) / (most - least || 1))]));
  }
  return new Map(named.map((origin, index) => [origin, `var(${TINTS[index % TINTS.length]})`]));
}

/** A colour between blue and yellow, by lightness as well as by hue; `share` is from 0 to 1. */
function ramp(share) {
  const stops = [[0, 70, 140], [90, 110, 140], [170, 150, 110], [240, 200, 50]];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (at - low)));
  return `rgb(${mixed.join(" ")})`;
}

function originLegend(origins, tints) {
  const entries = [...origins].sort((a, b) => (a === "" ? -1 : b === "" ? 1 : 0));
  const item = (origin) => el("li", {}, swatch(tints.get(origin)), originName(origin));
  return el("ul", { class: "legend", "aria-label": "What proposed the tokens" }, ...entries.map(item));
}

function swatch(tint) {
  return el("span", { class: tint ? "swatch tinted" : "swatch", style: tint ? `--tint: ${tint}` : null });
}

/** The colour that a CSS value has now, for a canvas. */
function colour(value) {
  colour.probe ??= document.body.appendChild(el("span", { hidden: true }));
  colour.probe.style.color = value;
  return getComputedStyle(colour.probe).color;
}

/** Black or white, whichever can be read on a colour that is given as rgb(). */
function readableOn(rgb) {
  const linear = rgb.match(/[\d.]+/g).slice(0, 3).map((value) => (value / 255 <= 0.04 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 ? "#000000" : "#ffffff";
}

const themeChanged = [];

function startTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("outlay-theme", value);
      return localStorage.getItem("outlay-theme");
    } catch {
      return null; // a page opened from a file may not be allowed to store
    }
  };
  const show = () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    $("theme").textContent = now === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Switch to the ${now === "dark" ? "light" : "dark"} theme`);
    themeChanged.forEach((redraw) => redraw());
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  $("theme").addEventListener("click", () => {
    const now = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    stored(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  show();
}

/** Says on the page itself when its first picture stood, in milliseconds from its start. */
function sayReady() {
  requestAnimationFrame(() => setTimeout(() => (document.documentElement.dataset.ready = performance.now().toFixed(0))));
}

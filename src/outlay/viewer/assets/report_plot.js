// The plot: each contender as a point with its whiskers, and the frontier.

const PLOT = { left: 66, right: 24, top: 18, bottom: 54 };

function startPlot() {
  const names = entryNames();
  const choices = [...(hasQuality() ? ["quality"] : []), ...names.map((name) => `entry:${name}`)];
  for (const id of ["plot-x", "plot-y"]) $(id).append(...choices.map((key) => el("option", { value: key }, titleOf(key))));
  $("plot-y").value = hasQuality() ? "quality" : `entry:${SPEED}`;
  $("plot-x").value = ["entry:seconds", "entry:target_passes"].find((key) => choices.includes(key) && varies(key)) ?? choices.at(-1);
  suggestLog();
  for (const id of ["plot-x", "plot-y", "plot-log"]) {
    $(id).addEventListener("change", () => {
      if (id === "plot-x") suggestLog();
      drawPlot();
    });
  }
  $("plot-keys").append(...data.contenders.map((contender, i) => el("li", {}, marker(i), `${i + 1}. ${contender.label}`)));
  new ResizeObserver(() => drawPlot()).observe($("plot"));
}

const valuesOf = (key) => data.contenders.map((_, i) => measured(i, key)).filter(Boolean);
const varies = (key) => new Set(valuesOf(key).map((each) => each.value)).size > 1;

/** A log scale helps where the values are far apart, and is offered only where all are above zero. */
function suggestLog() {
  const values = valuesOf($("plot-x").value).flatMap(({ low, value, high }) => [low ?? value, value, high ?? value]);
  const possible = values.length > 0 && Math.min(...values) > 0;
  $("plot-log").disabled = !possible;
  $("plot-log").checked = possible && Math.max(...values) / Math.min(...values) > 8;
}

function drawPlot() {
  const [keyX, keyY] = [$("plot-x").value, $("plot-y").value];
  const points = data.contenders.map((_, i) => ({ i, x: measured(i, keyX), y: measured(i, keyY) })).filter(({ x, y }) => x && y);
  const width = Math.max($("plot").clientWidth, 280);
  const height = Math.min(Math.max(width * 0.5, 300), 460);
  const across = axis(points.map(({ x }) => x), PLOT.left, width - PLOT.right, $("plot-log").checked);
  const up = axis(points.map(({ y }) => y), height - PLOT.bottom, PLOT.top, false);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-labelledby": "plot-says" });
  picture.append(...axes(across, up, keyX, keyY, width, height));
  const best = frontierOf(points, better(keyX), better(keyY));
  picture.append(frontierLine(best, across, up));
  const placed = [];
  for (const point of points) picture.append(drawPoint(point, across, up, { width, keyX, keyY, placed, best }));
  $("plot").replaceChildren(picture);
  $("plot-says").textContent = `${titleOf(keyY)} against ${titleOf(keyX)}. On the frontier: ${best.map(({ i }) => data.contenders[i].label).join(", ") || "none"}. The table of figures holds all values.`;
}

/** +1 where more is better, -1 where less is. */
const better = (key) => (GAINS.has(key.split(":").at(-1)) ? 1 : -1);

/** The points than which no other is better in one way and as good in the other, from left to right. */
function frontierOf(points, signX, signY) {
  const worth = ({ x, y }) => [signX * x.value, signY * y.value];
  const beats = (one, other) => one[0] >= other[0] && one[1] >= other[1] && (one[0] > other[0] || one[1] > other[1]);
  const kept = points.filter((point) => !points.some((other) => beats(worth(other), worth(point))));
  return kept.sort((a, b) => a.x.value - b.x.value || a.y.value - b.y.value);
}

const frontierLine = (best, across, up) =>
  svg("polyline", { class: "frontier", points: best.map(({ x, y }) => `${across.at(x.value)},${up.at(y.value)}`).join(" ") });

/** Places values between `from` and `to`; its ticks are round. */
function axis(spreads, from, to, log) {
  const values = spreads.flatMap(({ low, value, high }) => [low ?? value, value, high ?? value]);
  let [least, most] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  const turn = log ? Math.log10 : (value) => value;
  const margin = (turn(most) - turn(least)) * 0.07 || Math.abs(turn(most)) * 0.1 || 1;
  const [low, high] = [turn(least) - margin, turn(most) + margin];
  const at = (value) => from + ((turn(value) - low) / (high - low)) * (to - from);
  return { at, ticks: log ? logTicks(low, high) : ticks(low, high, Math.abs(to - from) / (from < to ? 75 : 60)) };
}

function ticks(low, high, about) {
  const rough = (high - low) / Math.max(about, 2);
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * size >= rough) * size;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function logTicks(low, high) {
  const every = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 5];
  const decades = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  return decades.flatMap((decade) => every.map((each) => each * 10 ** decade)).filter((each) => Math.log10(each) >= low && Math.log10(each) <= high);
}

function axes(across, up, keyX, keyY, width, height) {
  const bottom = height - PLOT.bottom;
  const titled = (key) => (NEITHER.has(key.split(":")[1]) ? titleOf(key) : `${titleOf(key)} · ${better(key) > 0 ? "more" : "less"} is better`);
  const [writeX, writeY] = [tickWriter(keyX, across.ticks), tickWriter(keyY, up.ticks)];
  return [
    ...up.ticks.flatMap((value) => [
      svg("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: up.at(value), y2: up.at(value) }),
      svg("text", { x: PLOT.left - 10, y: up.at(value) + 4, "text-anchor": "end" }, writeY(value)),
    ]),
    ...across.ticks.flatMap((value) => [
      svg("line", { class: "grid", x1: across.at(value), x2: across.at(value), y1: PLOT.top, y2: bottom }),
      svg("text", { x: across.at(value), y: bottom + 20, "text-anchor": "middle" }, writeX(value)),
    ]),
    svg("text", { class: "axis-title", x: width - PLOT.right, y: height - 8, "text-anchor": "end" }, titled(keyX)),
    svg("text", { class: "axis-title", x: 0, y: 8 }, titled(keyY)),
  ];
}

/** Writes the ticks of an axis, all in the unit of the largest. */
function tickWriter(key, ticks) {
  const unit = unitOf(key.split(":").at(-1));
  if (unit === "quality" || unit === "number") return (value) => (Number.isInteger(value) ? grouped(value) : String(value)).replace("-", "−");
  const [figure, name] = write(ticks.at(-1) ?? 1, unit).split(" ");
  const size = (ticks.at(-1) ?? 1) / Number(figure.replaceAll(",", ""));
  return (value) => `${Number((value / size).toPrecision(2))} ${name}`;
}

function drawPoint({ i, x, y }, across, up, { width, keyX, keyY, placed, best }) {
  const [px, py] = [across.at(x.value), up.at(y.value)];
  const { paint, shape } = look(i);
  const label = data.contenders[i].label;
  const says = `${label}: ${titleOf(keyY)} ${spell(y)}, ${titleOf(keyX)} ${spell(x)}${best.some((each) => each.i === i) ? ", on the frontier" : ""}`;
  const group = svg("g", { class: "point", tabindex: "0", role: "img", "aria-label": says, style: `--paint: ${paint}` });
  const line = (x1, y1, x2, y2) => svg("line", { class: "whisker", x1, y1, x2, y2 });
  if (x.low !== null && x.low !== undefined) group.append(line(across.at(x.low), py, across.at(x.high), py));
  if (y.low !== null && y.low !== undefined) group.append(line(px, up.at(y.low), px, up.at(y.high)));
  group.append(svg("path", { class: "shape", d: shape, transform: `translate(${px} ${py})` }));
  const name = width < 620 ? String(i + 1) : label.length > 26 ? `${i + 1}. ${label.slice(0, 22)}…` : label;
  group.append(svg("text", { class: "name", ...placeName(px, py, 7 * name.length, width, placed) }, name));
  const tip = () => showTip(px, py, label, [[keyY, y], [keyX, x]]);
  for (const event of ["pointerenter", "focus"]) group.addEventListener(event, tip);
  for (const event of ["pointerleave", "blur"]) group.addEventListener(event, hideTip);
  return group;
}

const spell = ({ value, low, high, unit }) => `${write(value, unit)}${low === null || low === undefined ? "" : ` (${write(low, unit)} to ${write(high, unit)})`}`;

/** The place for a name beside its point where it covers the least of those placed before. */
function placeName(px, py, wide, width, placed) {
  const options = [[px + 10, py - 8], [px + 10, py + 17], [px - 10 - wide, py - 8], [px - 10 - wide, py + 17]];
  const cost = ([x, y]) => {
    const out = Math.max(0, x + wide - width, -x) * 4;
    return out + placed.reduce((sum, [ox, oy, ow]) => sum + (Math.abs(y - oy) < 14 ? Math.max(0, Math.min(x + wide, ox + ow) - Math.max(x, ox)) : 0), 0);
  };
  const [x, y] = options.reduce((a, b) => (cost(b) < cost(a) ? b : a));
  placed.push([x, y, wide]);
  return { x, y };
}

function showTip(px, py, label, rows) {
  hideTip();
  const lines = rows.map(([key, { path, middle, unit }]) =>
    el("div", {}, `${titleOf(key)} `, figure(`${path}.${middle}`, unit), " (", figure(`${path}.low`, unit), " to ", figure(`${path}.high`, unit), ")"));
  const tip = el("div", { class: "tip", role: "status" }, el("b", {}, label), ...lines);
  $("plot").append(tip);
  $("plot").style.position = "relative";
  const room = $("plot").clientWidth - tip.offsetWidth;
  tip.style.left = `${Math.max(0, Math.min(px + 14, room))}px`;
  tip.style.top = `${py + 22}px`;
}

const hideTip = () => document.querySelector(".tip")?.remove();

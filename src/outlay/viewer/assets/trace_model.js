// One run of a trace: its columns, and what is derived from them.

const FATES = ["prompt", "text", "committed", "pruned", "open"];
const FATE_WORDS = ["in the prompt", "in the text", "committed, not in the text", "pruned", "still open at the end"];
const [PROMPT, TEXT, COMMITTED, PRUNED, OPEN] = [0, 1, 2, 3, 4];

/** Reads one run. Children come after their parents, so each pass over the columns is one loop. */
function readRun(run, spellings, labels) {
  const { parent } = run.nodes;
  const size = parent.length;
  const children = Array.from({ length: size }, () => []);
  for (let node = 0; node < size; node++) if (parent[node] >= 0) children[parent[node]].push(node);
  const below = new Uint32Array(size); // nodes under each
  const rated = new Uint32Array(size); // rated nodes at and under each
  for (const node of run.marks.score?.nodes ?? []) rated[node] += 1;
  const height = new Uint32Array(size);
  for (let node = size - 1; node >= 0; node--) {
    const above = parent[node];
    if (above < 0) continue;
    below[above] += below[node] + 1;
    rated[above] += rated[node];
    height[above] = Math.max(height[above], height[node] + 1);
  }
  const spelling = (node) => spellings[run.nodes.spelling[node]];
  const labelOf = (node) => labels[run.nodes.spelling[node]];
  const passOf = new Map();
  run.passes.nodes.forEach((nodes, index) => nodes.forEach((node) => passOf.set(node, index)));
  return { ...run, size, children, below, rated, height, spelling, labelOf, passOf };
}

const MEMORY = -2; // stands for the memory where a node is asked for; -1 is none

/** When the target's encoder had made the run's memory; 0 where another run's pass had. */
function memoryMade(run) {
  const pass = run.passes.model.indexOf("encoder");
  return pass < 0 ? 0 : run.passes.time[pass];
}

/** A memory in a few words. */
const memoryLabel = ({ rows, kind }) => `memory · ${count(rows, "row")} of ${kind}`;

/** A token as a label, with marks in place of white space and bytes. */
function label(spelling) {
  if (spelling.name !== undefined) return spelling.name || "∅";
  if (spelling.bytes !== undefined) return `‹${spelling.bytes.toUpperCase().replace(/(..)(?=.)/g, "$1 ")}›`;
  if (/^[\p{M}\p{Cf}]+$/u.test(spelling.text)) return [...spelling.text].map((letter) => `U+${letter.codePointAt(0).toString(16).toUpperCase()}`).join(" ");
  return spelling.text.replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length)).replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

/** The text that each node of a path adds; bytes wait until they make a character. */
function pieces(run, path) {
  const [decoder, encoder] = [new TextDecoder(), new TextEncoder()];
  return path.map((node) => {
    const { text, bytes: hex, name } = run.spelling(node);
    if (name !== undefined) return { special: true, text: name };
    const data = hex === undefined ? encoder.encode(text) : Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
    return { special: false, text: decoder.decode(data, { stream: true }) };
  });
}

/** The state of a node at a time: -1 before it grew, else one of the fates. */
function fateAt(run, node, time) {
  const { born, settled, fate } = run.nodes;
  if (born[node] > time) return -1;
  return fate[node] === PROMPT || (settled[node] !== null && settled[node] <= time) ? fate[node] : OPEN;
}

/** How many nodes of the run's tree were held after each event that changed it: [time, nodes] pairs. */
function heldOverTime(run) {
  const { born, settled, fate } = run.nodes;
  const changes = [];
  for (let node = 0; node < run.size; node++) {
    changes.push([born[node], 1]);
    if (fate[node] === PRUNED) changes.push([settled[node], -1]);
  }
  changes.sort((a, b) => a[0] - b[0]);
  let held = 0;
  const steps = new Map(); // the last value at each time
  for (const [time, change] of changes) steps.set(time, (held += change));
  return [...steps];
}

/** Which other runs of the file took part in the same pass. */
function sharers(runs) {
  const seen = new Map();
  for (const run of runs) {
    run.passes.number.forEach((number, index) => {
      const key = `${run.passes.model[index]} ${number}`;
      seen.set(key, [...(seen.get(key) ?? []), run.run]);
    });
  }
  return (run, index) => seen.get(`${run.passes.model[index]} ${run.passes.number[index]}`).filter((other) => other !== run.run);
}

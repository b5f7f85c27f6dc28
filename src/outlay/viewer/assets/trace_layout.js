// Where each node of a tree stands: columns by depth, rows by a skyline. Linear in the number of nodes.

const ROW = 27;
const BOX = 20; // height of a node
const GAP = 14; // between columns

/**
 * Places the nodes that are not folded away. Each chain (a node, its likeliest continuation, and so on) takes one row,
 * the first that is free over all of its columns. Chains are placed from the deepest branching point to the
 * shallowest, so that the lines to them cross nothing.
 */
function layOut(run, folded, widthOf) {
  const first = folded.has(0) ? Math.max(run.prompt - 1, 0) : 0; // a folded prompt is one node, its last
  const row = new Int32Array(run.size).fill(-1);
  const depth = new Int32Array(run.size);
  const sky = [];
  const stack = run.nodes.parent.flatMap((parent, node) => (parent < 0 ? [node === 0 ? first : node] : [])).reverse();
  const shown = [];
  while (stack.length) {
    const head = stack.pop();
    const above = head === first ? -1 : run.nodes.parent[head];
    const chain = follow(run, head, folded, first);
    const start = above < 0 ? 0 : depth[above] + 1;
    let place = above < 0 ? 0 : row[above] + 1;
    for (let i = 0; i < chain.length; i++) place = Math.max(place, sky[start + i] ?? 0);
    chain.forEach((node, i) => {
      depth[node] = start + i;
      row[node] = place;
      sky[start + i] = place + 1;
      shown.push(node);
      if (folded.has(node) && node !== first) return;
      for (const child of run.children[node].toReversed()) if (child !== chain[i + 1]) stack.push(child);
    });
  }
  const wide = new Float32Array(run.size);
  for (const node of shown) wide[node] = widthOf(node);
  return { row, depth, shown, first, wide, ...columns(shown, depth, wide), height: Math.max(...sky, 1) * ROW };
}

/** A node and those that go on from it: along the text, else along what was committed, else the longest. */
function follow(run, head, folded, first) {
  const { fate } = run.nodes;
  const chain = [head];
  for (let node = head; !folded.has(node) || node === first; ) {
    let next = -1;
    let best = -1;
    for (const child of run.children[node]) {
      const worth = (fate[child] <= TEXT ? 2 : fate[child] === COMMITTED ? 1 : 0) * 1e9 + run.height[child];
      if (worth > best) [next, best] = [child, worth];
    }
    if (next < 0) break;
    chain.push(next);
    node = next;
  }
  return chain;
}

/** The left edge and the width of each column: as wide as its widest label. */
function columns(shown, depth, wide) {
  const width = [];
  for (const node of shown) width[depth[node]] = Math.max(width[depth[node]] ?? 0, wide[node]);
  const left = [];
  let at = 0;
  for (const each of width) {
    left.push(at);
    at += each + GAP;
  }
  return { left, width, span: at - GAP };
}

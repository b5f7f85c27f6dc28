// Which tokens of two texts are not in a longest common subsequence of both (Myers 1986, the greedy algorithm).

/** Returns, for each text, which of its tokens differ from the other's, as arrays of booleans. */
function differing(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const inner = common(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const marks = (length, shared) => Array.from({ length }, (_, i) => i >= start && i < length - end && !shared.has(i - start));
  return [marks(a.length, new Set(inner.map(([i]) => i))), marks(b.length, new Set(inner.map(([, j]) => j)))];
}

/** Pairs of equal places, by the furthest reaching paths. `trace[d]` are the ends of the paths with d differences. */
function common(a, b) {
  const size = a.length + b.length;
  let ends = new Map([[1, 0]]);
  const trace = [];
  for (let d = 0; d <= size; d++) {
    const next = new Map(ends);
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && (ends.get(k - 1) ?? -1) < (ends.get(k + 1) ?? -1));
      let i = down ? ends.get(k + 1) : ends.get(k - 1) + 1;
      while (i < a.length && i - k < b.length && a[i] === b[i - k]) i++;
      next.set(k, i);
      if (i >= a.length && i - k >= b.length) return walkBack([...trace, ends], a, b, d);
    }
    trace.push(ends);
    ends = next;
  }
  return [];
}

function walkBack(trace, a, b, last) {
  const pairs = [];
  let [i, j] = [a.length, b.length];
  for (let d = last; d >= 0; d--) {
    const ends = trace[d];
    const k = i - j;
    const down = k === -d || (k !== d && (ends.get(k - 1) ?? -1) < (ends.get(k + 1) ?? -1));
    const from = d === 0 ? 0 : ends.get(down ? k + 1 : k - 1);
    const start = d === 0 ? 0 : down ? from : from + 1; // where the diagonal begins
    while (i > start) pairs.push([--i, --j]);
    if (d > 0) [i, j] = [from, from - (down ? k + 1 : k - 1)];
  }
  return pairs;
}

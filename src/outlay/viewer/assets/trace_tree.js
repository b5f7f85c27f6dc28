// The tree as a picture: draws what is in view, folds it, moves it and zooms it.

const READABLE = 0.55; // below this scale labels are left out

class TreeView {
  /** `choose(node)` is called when the reader picks a node. */
  constructor(canvas, choose) {
    Object.assign(this, { canvas, choose, context: canvas.getContext("2d"), widths: new Map() });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(run) {
    Object.assign(this, { run, chosen: -1, time: Infinity, lit: new Set(), paint: null });
    this.folded = new Set(run.prompt > 1 ? [0] : []);
    this.tints = originTints(run.origins);
    this.layOut();
    this.home();
  }

  /** As high as the tree needs, within reason. */
  setHeight() {
    this.canvas.style.height = `${Math.min(Math.max(this.layout.height + this.above + 40, 200), innerWidth > 760 ? 460 : 380)}px`;
  }

  layOut() {
    this.context.font = this.font();
    this.layout = layOut(this.run, this.folded, (node) => this.widthOf(node));
    this.setHeight();
    this.draw();
  }

  font = () => `12px ${getComputedStyle(document.documentElement).getPropertyValue("--mono")}`;

  /** The room that the memory takes above the tree. */
  get above() {
    return this.run.memory ? ROW + GAP : 0;
  }

  labelOf(node) {
    if (node === MEMORY) return memoryLabel(this.run.memory);
    if (this.isPrompt(node)) return `prompt · ${count(this.run.prompt, "token")}`;
    const text = this.run.labelOf(node);
    return text.length > 16 ? `${text.slice(0, 15)}…` : text;
  }

  widthOf(node) {
    return this.textWidth(this.labelOf(node)) + (this.isFolded(node) ? 12 + this.textWidth(this.hidden(node)) : 0);
  }

  /** Labels repeat, so each is measured once. */
  textWidth(text) {
    if (!this.widths.has(text)) this.widths.set(text, Math.max(12, this.context.measureText(text).width) + 14);
    return this.widths.get(text);
  }

  isPrompt = (node) => this.folded.has(0) && node === Math.max(this.run.prompt - 1, 0);
  isFolded = (node) => this.folded.has(node) && this.run.below[node] > 0 && !this.isPrompt(node);
  hidden = (node) => `+${grouped(this.run.below[node])}`;

  // Where things are.

  resize() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      [this.canvas.width, this.canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return { width, height };
  }

  home() {
    Object.assign(this, { scale: 1, x: 20, y: 20 + this.above });
    this.draw();
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const whole = Math.min(1.5, (width - 40) / this.layout.span, (height - 40) / (this.layout.height + this.above));
    this.scale = Math.max(whole, 0.2); // less would be a hair line
    this.x = Math.max(20, (width - this.layout.span * this.scale) / 2);
    this.y = Math.max(20, (height - (this.layout.height + this.above) * this.scale) / 2) + this.above * this.scale;
    this.draw();
  }

  zoom(factor, atX = this.canvas.clientWidth / 2, atY = this.canvas.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.02), 4);
    this.x = atX - ((atX - this.x) * scale) / this.scale;
    this.y = atY - ((atY - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  /** The memory is as wide as the tree, for every node reads it. */
  box(node) {
    if (node === MEMORY) return { x: 0, y: -this.above, width: Math.max(this.layout.span, this.textWidth(this.labelOf(node))), height: BOX };
    const { left, depth, row, wide } = this.layout;
    return { x: left[depth[node]], y: row[node] * ROW, width: wide[node], height: BOX };
  }

  /** Moves the picture, as little as it takes, so that `node` is in view. */
  reveal(node) {
    if (node !== MEMORY && this.layout.row[node] < 0) return;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const box = this.box(node);
    const [x, y] = [box.x * this.scale + this.x, box.y * this.scale + this.y];
    const [wide, high] = [box.width * this.scale, box.height * this.scale];
    if (node !== MEMORY) this.x += Math.max(0, 30 - x) || Math.min(0, width - 30 - wide - x);
    this.y += Math.max(0, 30 - y) || Math.min(0, height - 30 - high - y);
    this.draw();
  }

  // Drawing.

  draw() {
    if (this.pending || !this.layout) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.drawNow();
    });
  }

  drawNow() {
    const { context, scale } = this;
    const { width, height } = this.resize();
    const colours = this.colours();
    context.clearRect(0, 0, width, height);
    context.translate(this.x, this.y);
    context.scale(scale, scale);
    const view = { left: -this.x / scale, top: -this.y / scale, right: (width - this.x) / scale, bottom: (height - this.y) / scale };
    const shown = this.layout.shown.filter((node) => fateAt(this.run, node, this.time) >= 0);
    this.drawEdges(shown, view, colours);
    context.font = this.font();
    context.textBaseline = "middle";
    if (this.run.memory) this.drawMemory(view, colours);
    for (const node of shown) {
      const box = this.box(node);
      if (box.x > view.right || box.x + box.width < view.left || box.y > view.bottom || box.y + BOX < view.top) continue;
      this.drawNode(node, box, colours);
    }
  }

  colours() {
    const named = (name) => colour(`var(--${name})`);
    return { ink: named("ink"), muted: named("muted"), line: named("line"), accent: named("accent"), paper: named("paper"), soft: named("soft") };
  }

  drawEdges(shown, view, colours) {
    const { context, run } = this;
    const paths = { text: new Path2D(), other: new Path2D() };
    for (const node of shown) {
      const above = run.nodes.parent[node];
      if (above < 0 || node === this.layout.first) continue;
      const [from, to] = [this.box(above), this.box(node)];
      if (to.x < view.left || from.x > view.right || to.y + BOX < view.top || from.y > view.bottom) continue;
      const fate = fateAt(run, node, this.time);
      const path = fate === TEXT || fate === PROMPT ? paths.text : paths.other;
      const [y1, y2, bend] = [from.y + BOX / 2, to.y + BOX / 2, to.x - GAP / 2];
      path.moveTo(from.x + from.width, y1);
      if (y1 === y2) path.lineTo(to.x, y2);
      else {
        path.lineTo(bend - 4, y1);
        path.quadraticCurveTo(bend, y1, bend, y1 + 4);
        path.lineTo(bend, y2 - 4);
        path.quadraticCurveTo(bend, y2, bend + 4, y2);
        path.lineTo(to.x, y2);
      }
    }
    context.lineWidth = 1 / Math.min(this.scale, 1);
    context.strokeStyle = colours.muted;
    context.globalAlpha = 0.55;
    context.stroke(paths.other);
    context.globalAlpha = 1;
    context.lineWidth = 2 / Math.min(this.scale, 1);
    context.strokeStyle = colours.accent;
    context.stroke(paths.text);
  }

  /** The memory as a bar above the tree; dashed until the encoder has made it. Its label stays in view. */
  drawMemory(view, colours) {
    const { context } = this;
    const box = this.box(MEMORY);
    const shape = new Path2D();
    shape.rect(box.x, box.y, box.width, box.height);
    context.fillStyle = colours.soft;
    context.fill(shape);
    context.setLineDash(this.time < memoryMade(this.run) ? [4, 3] : []);
    context.lineWidth = 1.25;
    context.strokeStyle = colours.ink;
    context.stroke(shape);
    context.setLineDash([]);
    this.drawRings(MEMORY, shape, colours);
    const at = Math.min(Math.max(box.x, view.left + 8), box.x + box.width - this.textWidth(this.labelOf(MEMORY)));
    if (this.scale >= READABLE) this.drawLabel(MEMORY, { ...box, x: at }, colours.ink);
  }

  drawNode(node, box, colours) {
    const { context } = this;
    const fate = fateAt(this.run, node, this.time);
    const tint = this.tintOf(node);
    const shape = new Path2D();
    shape.roundRect(box.x, box.y, box.width, box.height, 5);
    context.fillStyle = colours.soft;
    context.fill(shape);
    if (fate !== PRUNED || this.paint) {
      context.globalAlpha = this.paint && tint ? 1 : this.scale < READABLE ? 0.85 : 0.3;
      context.fillStyle = tint ?? (fate === TEXT || fate === PROMPT ? colours.accent : colours.muted);
      if (tint || fate === PROMPT || this.scale < READABLE) context.fill(shape);
      context.globalAlpha = 1;
    }
    context.setLineDash(fate === PRUNED ? [4, 3] : fate === OPEN ? [1.5, 2.5] : []);
    context.lineWidth = fate === TEXT ? 2 : 1.25;
    context.strokeStyle = (!this.paint && tint) || (fate === TEXT ? colours.accent : colours.muted);
    context.stroke(shape);
    context.setLineDash([]);
    this.drawRings(node, shape, colours);
    const ink = this.paint && tint ? readableOn(tint) : fate === PRUNED ? colours.muted : colours.ink;
    if (this.scale >= READABLE) this.drawLabel(node, box, ink);
  }

  drawRings(node, shape, colours) {
    const { context } = this;
    if (!this.lit.has(node) && node !== this.chosen) return;
    context.lineWidth = (node === this.chosen ? 3 : 2) / Math.min(this.scale, 1);
    context.strokeStyle = node === this.chosen ? colours.accent : colours.ink;
    context.stroke(shape);
  }

  drawLabel(node, box, ink) {
    const { context } = this;
    const text = this.labelOf(node);
    context.fillStyle = ink;
    context.fillText(text, box.x + 7, box.y + BOX / 2 + 0.5);
    if (node !== MEMORY && this.isFolded(node)) context.fillText(this.hidden(node), box.x + this.textWidth(text) + 5, box.y + BOX / 2 + 0.5);
  }

  tintOf(node) {
    if (this.paint) return this.paint(node);
    const tint = this.tints.get(this.run.origins[this.run.nodes.origin[node]]);
    return tint ? colour(tint) : null;
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  // What the reader does.

  pick(node) {
    if (node < 0 && node !== MEMORY) return;
    this.chosen = node;
    this.choose(node);
    this.reveal(node);
    this.draw();
  }

  toggle(node) {
    if (node < 0) return;
    const key = node === this.layout.first ? 0 : node;
    if (!this.run.below[key]) return;
    if (!this.folded.delete(key)) this.folded.add(key);
    this.layOut();
  }

  /** Folds each pruned branch at its top. */
  foldPruned() {
    const { parent, fate } = this.run.nodes;
    for (let node = 0; node < this.run.size; node++) {
      if (fate[node] === PRUNED && parent[node] >= 0 && fate[parent[node]] !== PRUNED && this.run.below[node]) this.folded.add(node);
    }
    this.layOut();
  }

  unfold() {
    this.folded.clear();
    this.layOut();
  }

  at(event) {
    const bounds = this.canvas.getBoundingClientRect();
    const x = (event.clientX - bounds.left - this.x) / this.scale;
    const y = (event.clientY - bounds.top - this.y) / this.scale;
    const hit = (node) => {
      const box = this.box(node);
      return x >= box.x && x <= box.x + box.width && y >= box.y && y <= box.y + box.height;
    };
    return this.layout.shown.find(hit) ?? (this.run.memory && hit(MEMORY) ? MEMORY : -1);
  }

  /** The shown node above (-1, 0), below (1, 0) or beside (0, ±1) the chosen one, the memory over the topmost; -1 where there is none. */
  neighbour(deeper, beside) {
    const { parent } = this.run.nodes;
    const { row, depth, shown, first } = this.layout;
    if (this.chosen === MEMORY && beside < 0) return -1;
    if (this.chosen < 0 || row[this.chosen] < 0) return first;
    if (deeper < 0) return this.chosen === first ? -1 : parent[this.chosen];
    const among = shown.filter((node) => (deeper ? parent[node] === this.chosen : depth[node] === depth[this.chosen]));
    const ahead = among.filter((node) => deeper || (row[node] - row[this.chosen]) * beside > 0);
    if (!ahead.length && beside < 0 && this.run.memory) return MEMORY;
    return ahead.sort((a, b) => Math.abs(row[a] - row[this.chosen]) - Math.abs(row[b] - row[this.chosen]))[0] ?? -1;
  }
}

// Three bands over one axis of time: the rows of each pass, the nodes held by the run, the bytes in the cache.

const SIDE = 64; // room for the labels of the upright axes

class Charts {
  constructor(canvas, choose) {
    Object.assign(this, { canvas, choose, context: canvas.getContext("2d") });
    canvas.addEventListener("pointerdown", (event) => this.chooseAt(event));
    canvas.addEventListener("pointermove", (event) => event.buttons && this.chooseAt(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(run) {
    const { passes } = run;
    const held = heldOverTime(run);
    const cache = passes.time.map((time, i) => [time, passes.cache_bytes[i]]).filter((_, i) => passes.model[i] === "target");
    Object.assign(this, { run, held, cache, chosen: -1 });
    this.canvas.setAttribute("aria-label", this.inWords());
    this.draw();
  }

  inWords() {
    const { width, time } = this.run.passes;
    if (!time.length) return "No passes.";
    const most = (pairs) => Math.max(...pairs.map(([, value]) => value), 0);
    return `${count(time.length, "pass", "passes")} in ${seconds(this.run.end)}, of up to ${count(Math.max(...width), "row")}; ` +
      `up to ${count(most(this.held), "node")} held; up to ${bytes(most(this.cache))} in the cache. The table below has them all.`;
  }

  chooseAt(event) {
    const { time } = this.run.passes;
    const at = (event.clientX - this.canvas.getBoundingClientRect().left - SIDE) / this.perSecond;
    let nearest = 0;
    time.forEach((each, i) => Math.abs(each - at) < Math.abs(time[nearest] - at) && (nearest = i));
    if (time.length) this.choose(nearest);
  }

  draw() {
    if (this.pending || !this.run) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.drawNow();
    });
  }

  drawNow() {
    const { context, canvas } = this;
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    this.ink = Object.fromEntries(["ink", "muted", "line", "accent", "orange", "green"].map((name) => [name, colour(`var(--${name})`)]));
    this.perSecond = (width - SIDE - 8) / (this.run.end || 1);
    const band = (height - 30) / 3;
    this.passes(0, band);
    this.steps(band, band, "Nodes of this run", this.held, grouped);
    this.steps(2 * band, band, "Cache, all runs", this.cache, bytes);
    this.axis(height - 24, width);
    this.marker(height - 24);
  }

  /** A band's title, its line at zero and its highest value; returns how to place a value. */
  frame(top, height, title, most, format) {
    const { context } = this;
    const [base, room] = [top + height - 8, height - 34];
    context.textAlign = "left";
    context.fillStyle = this.ink.ink;
    context.fillText(title, SIDE, top + 12);
    context.strokeStyle = this.ink.line;
    context.lineWidth = 1;
    context.fillStyle = this.ink.muted;
    context.textAlign = "right";
    for (const [y, value] of [[base, 0], [base - room, most]]) {
      context.fillText(format(value), SIDE - 8, y + 4);
      this.line(SIDE, y + 0.5, this.canvas.clientWidth - 8, y + 0.5);
    }
    return { base, y: (value) => base - (room * value) / (most || 1) };
  }

  passes(top, height) {
    const { context } = this;
    const { time, seconds: took, width, rows, model } = this.run.passes;
    const most = Math.max(...width, 1);
    const bend = most > 24 ? (value) => Math.log2(1 + value) : (value) => value;
    const { base, y } = this.frame(top, height, `Rows of each pass${most > 24 ? ", log scale" : ""}`, bend(most), () => "");
    context.fillStyle = this.ink.muted;
    context.textAlign = "right";
    for (const tick of most > 24 ? [1, 8, 64, 512].filter((each) => each < most / 2).concat(most) : [0, most]) {
      context.fillText(grouped(tick), SIDE - 8, y(bend(tick)) + 4);
    }
    time.forEach((end, i) => {
      const [left, wide] = [SIDE + Math.max(end - took[i], 0) * this.perSecond, Math.max(took[i] * this.perSecond - 0.5, 0.75)];
      context.fillStyle = { draft: this.ink.orange, encoder: this.ink.green }[model[i]] ?? this.ink.accent;
      context.globalAlpha = 0.3;
      context.fillRect(left, y(bend(width[i])), wide, base - y(bend(width[i])));
      context.globalAlpha = i === this.chosen ? 1 : 0.85;
      context.fillRect(left, y(bend(rows[i])), wide, base - y(bend(rows[i])));
    });
    context.globalAlpha = 1;
  }

  steps(top, height, title, pairs, format) {
    const { context } = this;
    const most = Math.max(...pairs.map(([, value]) => value), 1);
    const { base, y } = this.frame(top, height, title, most, format);
    if (!pairs.length) return;
    const x = (time) => SIDE + time * this.perSecond;
    context.beginPath();
    context.moveTo(x(pairs[0][0]), base);
    let last = base;
    for (const [time, value] of pairs) {
      context.lineTo(x(time), last);
      context.lineTo(x(time), (last = y(value)));
    }
    context.lineTo(x(this.run.end), last);
    context.strokeStyle = this.ink.accent;
    context.lineWidth = 1.5;
    context.stroke();
    context.lineTo(x(this.run.end), base);
    context.closePath();
    context.globalAlpha = 0.15;
    context.fillStyle = this.ink.accent;
    context.fill();
    context.globalAlpha = 1;
  }

  axis(top, width) {
    const { context } = this;
    context.fillStyle = this.ink.muted;
    const steps = width < 500 ? 2 : 4;
    for (let i = 0; i <= steps; i++) {
      const at = (this.run.end * i) / steps;
      context.textAlign = i === 0 ? "left" : i === steps ? "right" : "center";
      context.fillText(i === 0 ? "0" : seconds(at), SIDE + at * this.perSecond, top + 16);
    }
  }

  marker(bottom) {
    if (this.chosen < 0) return;
    const x = SIDE + this.run.passes.time[this.chosen] * this.perSecond;
    this.context.strokeStyle = this.ink.ink;
    this.context.lineWidth = 1;
    this.line(x, 16, x, bottom);
  }

  line(x1, y1, x2, y2) {
    this.context.beginPath();
    this.context.moveTo(x1, y1);
    this.context.lineTo(x2, y2);
    this.context.stroke();
  }
}

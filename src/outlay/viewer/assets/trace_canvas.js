// A canvas that was filled in rounds: a column for each position, a row for each round, darker where the model was surer.

const SQUARE = { least: 5, most: 18, gap: 1 };

class CanvasView {
  constructor(canvas, say, choose) {
    Object.assign(this, { canvas, say, choose, context: canvas.getContext("2d") });
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => this.pick(null));
    canvas.addEventListener("pointerdown", (event) => this.point(event) && this.choose(this.picked.position));
    canvas.addEventListener("keydown", (event) => this.walk(event));
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
  }

  show(run, labels) {
    const { canvas } = run;
    this.rounds = canvas?.rounds ?? [];
    this.at = this.rounds.map((round) => new Map(round.position.map((position, i) => [position, i])));
    Object.assign(this, { run, labels, begin: canvas?.begin ?? 0, length: canvas?.length ?? 0, picked: null });
    this.pick(null);
  }

  get size() {
    const room = this.canvas.parentElement.clientWidth - SIDE;
    return Math.min(Math.max(Math.floor(room / (this.length || 1)), SQUARE.least), SQUARE.most);
  }

  draw() {
    if (!this.rounds?.length) return;
    const { context, canvas, size } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [SIDE + this.length * size, this.rounds.length * size + 24];
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const [ink, muted, accent] = ["ink", "muted", "accent"].map((name) => colour(`var(--${name})`));
    this.axes(muted, size);
    this.rounds.forEach((round, row) => {
      round.position.forEach((position, i) => {
        const [x, y, side] = [SIDE + (position - this.begin) * size, row * size, size - SQUARE.gap];
        context.globalAlpha = 0.08 + 0.92 * round.confidence[i] ** 2;
        context.fillStyle = accent;
        context.fillRect(x, y, side, side);
        context.globalAlpha = 1;
        if (round.filled[i]) this.frame(x, y, side, ink, 1.5);
      });
    });
    if (this.picked) this.frame(SIDE + (this.picked.position - this.begin) * size - 1, this.picked.row * size - 1, size + 1, colour("var(--orange)"), 2.5);
  }

  frame(x, y, side, ink, wide) {
    this.context.strokeStyle = ink;
    this.context.lineWidth = wide;
    this.context.strokeRect(x + wide / 2, y + wide / 2, side - wide, side - wide);
  }

  /** Numbers of rounds on the left and of positions below, as many as there is room for. */
  axes(muted, size) {
    const { context, rounds } = this;
    context.fillStyle = muted;
    context.textAlign = "right";
    const step = Math.ceil(16 / size);
    rounds.forEach((round, row) => row % step === 0 && context.fillText(grouped(round.number), SIDE - 8, row * size + Math.min(size, 12)));
    context.textAlign = "left";
    const wide = Math.ceil(48 / size);
    for (let place = 0; place < this.length; place += wide) context.fillText(grouped(this.begin + place), SIDE + place * size, rounds.length * size + 16);
  }

  /** Picks the square under the pointer; returns whether there is one. */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const position = this.begin + Math.floor((event.clientX - box.left - SIDE) / this.size);
    const row = Math.floor((event.clientY - box.top) / this.size);
    this.pick(this.at[row]?.has(position) ? { position, row } : null);
    return this.picked !== null;
  }

  walk(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const last = this.rounds.length - 1;
    if (event.key === "Enter" && this.picked) this.choose(this.picked.position);
    else if (event.key === "Home" || event.key === "End") this.first(event.key === "Home" ? 0 : last);
    else if (steps[event.key]) this.picked ? this.step(...steps[event.key]) : this.first(0);
    else return;
    event.preventDefault();
  }

  first(row) {
    const positions = this.rounds[row]?.position ?? [];
    if (positions.length) this.pick({ position: positions[0], row });
  }

  /** Moves to the next square in a direction, over what was filled before. */
  step(right, down) {
    let { position, row } = this.picked;
    do {
      position += right;
      row += down;
      if (this.at[row]?.has(position)) return this.pick({ position, row });
    } while (row >= 0 && row < this.rounds.length && position >= this.begin && position < this.begin + this.length);
  }

  pick(square) {
    this.picked = square;
    this.say(square ? this.inWords(square) : `${count(this.rounds.length, "round")} over ${count(this.length, "position")}.`);
    this.draw();
  }

  inWords({ position, row }) {
    const [round, i] = [this.rounds[row], this.at[row].get(position)];
    const told = round.filled[i] ? "filled in this round" : "stays masked";
    return `Round ${grouped(round.number)}, position ${grouped(position)}: “${this.labels[round.spelling[i]]}”, confidence ${round.confidence[i].toFixed(3)}, ${told}.`;
  }
}

// What mouse, fingers and keys do to the tree.

class TreeInput {
  constructor(view) {
    Object.assign(this, { view, canvas: view.canvas, pointers: new Map(), moved: 0 });
    this.listen();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("dblclick", (event) => this.view.at(event) >= 0 && this.view.toggle(this.view.at(event)));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.up(event));
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey && !event.deltaX) return; // the page scrolls
    event.preventDefault();
    const bounds = this.canvas.getBoundingClientRect();
    if (event.ctrlKey || event.metaKey) this.view.zoom(Math.exp(-event.deltaY / 200), event.clientX - bounds.left, event.clientY - bounds.top);
    else this.view.pan(-event.deltaX, 0);
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.moved = 0;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const other = [...this.pointers.values()].find((each) => each.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.canvas.classList.add("moving");
    if (other) {
      const apart = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY);
      this.view.zoom(apart(event) / (apart(before) || 1));
      this.moved = 99;
    } else {
      this.moved += Math.abs(event.clientX - before.clientX) + Math.abs(event.clientY - before.clientY);
      this.view.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    }
  }

  up(event) {
    if (this.pointers.delete(event.pointerId) && event.type === "pointerup" && this.moved < 5) this.view.pick(this.view.at(event));
    this.canvas.classList.remove("moving");
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      ArrowLeft: () => this.view.pick(this.view.neighbour(-1, 0)),
      ArrowRight: () => this.view.pick(this.view.neighbour(1, 0)),
      ArrowUp: () => this.view.pick(this.view.neighbour(0, -1)),
      ArrowDown: () => this.view.pick(this.view.neighbour(0, 1)),
      Home: () => this.view.pick(this.view.layout.first),
      End: () => this.view.pick(this.view.run.path.at(-1) ?? -1),
      Enter: () => this.view.toggle(this.view.chosen),
      " ": () => this.view.toggle(this.view.chosen),
      "+": () => this.view.zoom(1.25),
      "=": () => this.view.zoom(1.25),
      "-": () => this.view.zoom(0.8),
      "0": () => this.view.fit(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

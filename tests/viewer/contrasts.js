// The contrast (WCAG 2, relative luminance) of each kind of visible text with what is behind it, and an example of it.
() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const fill = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = () => {
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const element = walker.currentNode.parentElement;
    if (!text || element.closest("script, style, option, .sr, :disabled") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const behind = [];
    for (let each = element; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
    const kind = [ink, ...behind].join();
    if (found.has(kind)) continue;
    fill("#fff");
    behind.forEach(fill);
    const paper = luminance();
    fill(ink);
    const [dark, light] = [paper, luminance()].sort((a, b) => a - b);
    found.set(kind, [(light + 0.05) / (dark + 0.05), `${text.slice(0, 40)} (${element.tagName})`]);
  }
  return [...found.values()];
}

// Pictures with boxes, two detectors side by side. What a box is, its line says; its colour only helps.

const KINDS = [
  ["hit", "found, and right"],
  ["alarm", "false alarm"],
  ["truth", "the truth, found"],
  ["missed", "the truth, missed"],
];

function startAnswers() {
  $("answers-link").textContent = "Pictures";
  const options = () => data.contenders.map((contender, i) => el("option", { value: i }, contender.label));
  $("left").append(...options());
  $("right").append(...options());
  $("left").value = data.contenders[0].reference;
  $("right").value = data.contenders.findIndex((_, i) => i !== Number($("left").value) || data.contenders.length === 1);
  for (const id of ["left", "right"]) $(id).addEventListener("change", listPictures);
  $("differing").addEventListener("change", listPictures);
  $("prompt").addEventListener("change", drawPictures);
  $("before").addEventListener("click", () => stepPicture(-1));
  $("after").addEventListener("click", () => stepPicture(1));
  $("picture-legend").append(...KINDS.map(([kind, told]) => el("li", {}, lineOf(kind), told)));
  listPictures();
}

const lineOf = (kind) =>
  svg("svg", { class: "line-key", viewBox: "0 0 34 12", "aria-hidden": "true" }, svg("rect", { class: `box ${kind}`, x: 2, y: 2, width: 30, height: 8 }));

const contendersShown = () => [Number($("left").value), Number($("right").value)];
const isFaulty = (answer) => !answer || answer.found.includes(false) || answer.boxes.some(({ hit }) => !hit);

/** Lists the pictures that the filter leaves, and keeps the chosen one if it is among them. */
function listPictures() {
  const wanted = data.pictures.filter(({ answers }) => !$("differing").checked || contendersShown().some((i) => isFaulty(answers[i])));
  const chosen = $("prompt").value;
  $("prompt").replaceChildren(...wanted.map(({ index }) => el("option", { value: index }, `${index + 1}. ${data.prompts[index].text}`)));
  if (wanted.some(({ index }) => String(index) === chosen)) $("prompt").value = chosen;
  $("found").textContent = `${grouped(wanted.length)} of ${count(data.prompts.length, "picture")}`;
  drawPictures();
}

function stepPicture(by) {
  const next = Math.min(Math.max($("prompt").selectedIndex + by, 0), $("prompt").options.length - 1);
  if (next >= 0) $("prompt").selectedIndex = next;
  drawPictures();
}

function drawPictures() {
  const picture = data.pictures.find(({ index }) => String(index) === $("prompt").value);
  const { selectedIndex, options } = $("prompt");
  $("before").disabled = selectedIndex <= 0;
  $("after").disabled = selectedIndex >= options.length - 1;
  const [left, right] = contendersShown();
  drawPicture("left-text", picture, left);
  drawPicture("right-text", picture, right);
}

function drawPicture(id, picture, contender) {
  const answer = picture?.answers[contender];
  if (!answer) return $(id).replaceChildren(el("p", { class: "facts" }, picture ? "No answer: the run failed." : "No picture is left by the filter."));
  const { width, height, image, truth } = picture;
  const drawn = svg("svg", { class: "boxed", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said(picture, answer) });
  drawn.append(svg("image", { href: image, width, height }));
  const size = Math.max(width, height);
  truth.forEach(({ box, label }, i) => drawn.append(...boxed(box, answer.found[i] ? "truth" : "missed", answer.found[i] ? null : label, size)));
  for (const { box, label, score, hit } of answer.boxes) drawn.append(...boxed(box, hit ? "hit" : "alarm", `${label} ${score.toFixed(2)}`, size));
  return $(id).replaceChildren(el("p", { class: "facts" }, said(picture, answer)), drawn);
}

function said(picture, answer) {
  const right = answer.boxes.filter(({ hit }) => hit).length;
  const alarms = answer.boxes.length - right;
  return `${right} of ${count(picture.truth.length, "box", "boxes")} found, ${count(alarms, "false alarm")}`;
}

/** A box as its outline on a light one, so that it is seen on any picture, and its label. */
function boxed([left, top, right, bottom], kind, label, size) {
  const place = { x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0) };
  const parts = [svg("rect", { ...place, class: "under" }), svg("rect", { ...place, class: `box ${kind}` })];
  if (label) {
    const text = svg("text", { x: left + size * 0.006, y: Math.max(top - size * 0.008, size * 0.03), "font-size": size * 0.028, "stroke-width": size * 0.005, class: `label ${kind}` }, label);
    parts.push(text);
  }
  return parts;
}

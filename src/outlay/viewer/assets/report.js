// The report: its headline, its setting and its manifest; starts the other parts.

function showHeadline() {
  const [first, ...rest] = data.headline.map((sentence) =>
    sentence.map((part) => (typeof part === "string" ? part : figure(part.path, part.unit))));
  $("headline").append(...first);
  $("lead").hidden = !rest.length;
  $("lead").append(...rest.flatMap((sentence) => [...sentence, " "]));
  document.title = `${$("headline").textContent} · outlay compare`;
}

function showSetting() {
  const { model, draft, prompts, seeds, repeats, machine, created } = data.manifest;
  const named = (each) => (typeof each === "string" ? each : each?.name);
  const parts = [
    [named(model)],
    draft ? [`draft ${named(draft)}`] : null,
    [figure("manifest.prompts.count", "number"), ` ${NOUN}${prompts.count === 1 ? "" : "s"}`],
    seeds?.length > 1 ? [`seeds ${seeds.join(", ")}`] : null,
    repeats ? [figure("manifest.repeats", "number"), repeats === 1 ? " run each" : " runs each, taken in turn"] : null,
    machine?.processor ? [machine.processor] : null,
    created ? [el("span", { class: "whole" }, created.slice(0, 10))] : null,
  ].filter(Boolean);
  $("setting").append(...parts.flatMap((part, i) => (i ? [" · ", ...part] : part)));
}

function showWarning() {
  const failed = data.contenders.filter((contender) => contender.errors);
  $("warning").hidden = !failed.length;
  $("warning").textContent = failed.map(({ label, first_error: error }) => `Runs of ${label} failed${error ? `: ${error}` : ""}.`).join(" ");
}

function showManifest() {
  const rows = flattened(data.manifest).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value)));
  $("manifest-details").lastElementChild.replaceChildren(el("table", {}, el("tbody", {}, ...rows)));
}

/** Nested objects as rows of "a.b" and a value. */
function flattened(value, name = "") {
  if (value && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, each]) => flattened(each, name ? `${name}.${key}` : key));
  }
  if (Array.isArray(value) && value.some((each) => each && typeof each === "object")) {
    return value.flatMap((each, i) => flattened(each, `${name}.${i}`));
  }
  return [[name, Array.isArray(value) ? value.join(" ") : String(value ?? "–")]];
}

showHeadline();
showSetting();
showWarning();
startPlot();
startTable();
startAnswers();
$("manifest-details").addEventListener("toggle", showManifest, { once: true });
startTheme();
sayReady();

// Formulas: TeX to MathML by Temml, which is fetched from this server when the first formula comes. Until then, and where
// a formula is wrong, its TeX is shown.

import { element } from "./element.js";

let temml = null;

/** An element that shows `tex`; `display` on a line of its own. */
export function formula(tex, display) {
  const host = element(display ? "div.formula" : "span.formula", { title: tex }, tex);
  if (display) Object.assign(host, { tabIndex: 0, role: "region", ariaLabel: "Formula" });
  temml ??= import("./vendor/temml.js");
  temml.then((module) => draw(module.default, host, tex, display));
  return host;
}

function draw(temml, host, tex, display) {
  try {
    temml.render(tex, host, { displayMode: display, throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 20] });
  } catch {
    host.textContent = tex;
    host.classList.add("unread");
  }
}

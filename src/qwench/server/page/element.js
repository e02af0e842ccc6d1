// Elements of the page. Text becomes text nodes and nothing else; the server's content policy forbids markup from strings.

const SVG = "http://www.w3.org/2000/svg";

/** `element("p.note", {title: "…"}, "text", child)`: a tag with classes, its properties, what it holds (nothing for null). */
export function element(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  made.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function icon(name) {
  const [svg, use] = ["svg", "use"].map((tag) => document.createElementNS(SVG, tag));
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only an icon; `label` is what it is called. */
export function iconButton(name, label, onclick) {
  return element("button.quiet", { type: "button", "aria-label": label, title: label, onclick }, icon(name));
}

/** A button that copies what `text()` gives, and says for a moment that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    await copy(text());
    button.replaceChildren(icon("done"));
    announce("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea.unseen", { value: text }); // over plain HTTP from another machine there is no clipboard
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Tell a screen reader. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

/** Hand `text` to the browser as a file to be saved. */
export function download(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

// Markdown as elements. marked finds the tokens; every element is made here, so raw HTML stays the text it is.

import { Marked } from "./vendor/marked.js";
import { codeBlock } from "./code.js";
import { element } from "./element.js";
import { formula } from "./formula.js";

const LINKS = /^(https?:|mailto:)/i;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(amp|lt|gt|quot|apos|nbsp));/gi;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

// A formula's opening, and the whole of it. A single dollar closes only where it cannot be money: "$5 and $6" is text.
const DISPLAY = /^ {0,3}(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\])[ \t]*(?:\n|$)/;
const INLINE = /^(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\]|\\\(([^]+?)\\\)|\$((?:[^\s$\\]|\\.)(?:(?:[^$\\\n]|\\.)*?(?:[^\s$\\]|\\.))?)\$(?!\d))/;

const marked = new Marked({
  gfm: true,
  extensions: [
    {
      name: "formula",
      level: "block",
      start: (source) => source.match(/\n {0,3}(?:\$\$|\\\[)/)?.index,
      tokenizer: (source) => formulaToken(source.match(DISPLAY), true),
    },
    {
      name: "formula",
      level: "inline",
      start: (source) => source.match(/\$|\\[[(]/)?.index,
      tokenizer: (source) => formulaToken(source.match(INLINE), /^(\$\$|\\\[)/.test(source)),
    },
  ],
});

function formulaToken(found, display) {
  if (!found) return undefined;
  return { type: "formula", raw: found[0], text: found.slice(1).find((group) => group !== undefined).trim(), display };
}

/** Show `text` in `host`. Blocks that are as they were stay, so a growing text costs only its end. */
export function showMarkdown(host, text) {
  const blocks = marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  blocks.forEach((token, index) => {
    const there = host.children[index];
    if (there?.markdown === token.raw) return;
    const made = block(token);
    made.markdown = token.raw;
    if (there) there.replaceWith(made);
    else host.append(made);
  });
  while (host.children.length > blocks.length) host.lastElementChild.remove();
}

const BLOCKS = {
  paragraph: (token) => element("p", {}, inline(token.tokens)),
  text: (token) => element("p", {}, token.tokens ? inline(token.tokens) : decoded(token.text)),
  heading: (token) => element(`h${Math.min(token.depth + 1, 6)}`, {}, inline(token.tokens)),
  code: (token) => codeBlock(token.text, (token.lang ?? "").match(/^\S*/)[0]),
  blockquote: (token) => element("blockquote", {}, token.tokens.map(block)),
  hr: () => element("hr"),
  html: (token) => element("p.literal", {}, token.raw.trimEnd()),
  formula: (token) => formula(token.text, true),
  list: (token) => {
    const start = token.ordered && token.start !== 1 ? { start: token.start } : {};
    return element(token.ordered ? "ol" : "ul", start, token.items.map(item));
  },
  table: (token) => {
    const row = (cells, kind) => element("tr", {}, cells.map((cell) => tableCell(cell, kind)));
    const body = token.rows.map((cells) => row(cells, "td"));
    const table = element("table", {}, element("thead", {}, row(token.header, "th")), element("tbody", {}, body));
    return element("div.wide", { tabIndex: 0, role: "region", "aria-label": "Table" }, table);
  },
};

function block(token) {
  return (BLOCKS[token.type] ?? BLOCKS.html)(token);
}

function item({ task, checked, loose, tokens }) {
  const held = tokens.map((token) => {
    if (token.type === "checkbox") return null;
    return token.type === "text" && !loose ? inline(token.tokens ?? [token]) : block(token);
  });
  const box = task ? element("span.task", { role: "img", "aria-label": checked ? "done" : "to do" }, checked ? "☑ " : "☐ ") : null;
  return element(task ? "li.tasked" : "li", {}, box, held.flat());
}

function tableCell({ tokens, align }, kind) {
  return element(align ? `${kind}.${align}` : kind, {}, inline(tokens));
}

const INLINES = {
  text: (token) => (token.tokens ? inline(token.tokens) : decoded(token.text)),
  escape: (token) => token.raw.slice(1),
  strong: (token) => element("strong", {}, inline(token.tokens)),
  em: (token) => element("em", {}, inline(token.tokens)),
  del: (token) => element("del", {}, inline(token.tokens)),
  codespan: (token) => element("code", {}, token.text),
  checkbox: () => [],
  br: () => element("br"),
  html: (token) => (/^<br\s*\/?>$/i.test(token.raw) ? element("br") : token.raw),
  link: (token) => link(token.href, inline(token.tokens)),
  image: (token) => picture(token),
  formula: (token) => formula(token.text, token.display),
};

function inline(tokens) {
  return tokens.flatMap((token) => (INLINES[token.type] ?? INLINES.html)(token));
}

function link(address, held) {
  if (!LINKS.test(address)) return element("span", { title: address }, held);
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow", title: address }, held);
}

/** A picture inside the text is shown; one from elsewhere is a link: looking at an answer must tell nobody of it. */
function picture({ href, text }) {
  if (/^data:image\/(png|jpeg|gif|webp);/i.test(href)) return element("img", { src: href, alt: text });
  return link(href, text || href);
}

function decoded(text) {
  return text.replace(ENTITY, (whole, decimal, hex, name) => {
    if (name) return NAMED[name.toLowerCase()];
    const code = decimal ? Number(decimal) : parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
}

// Code with quiet colours: comments, strings, numbers and words of the language. One scanner for all languages, on
// purpose: it is right often enough to help the eye, and small.

import { copyButton, element } from "./element.js";

const WORDS = new Set(
  `abstract and as assert async await begin bool boolean break case catch char class const continue def default defer del
  delete do double elif else elseif end enum except export extends extern false final finally float fn for from func function
  global go if impl implements import in include instanceof int interface is lambda let local long loop match mod module mut
  namespace new nil none not null nullptr of or override package pass private protected public pub raise rec return self
  short signed sizeof static string struct super switch then this throw throws trait true try type typedef typeof union
  unless unsafe unsigned until use using val var virtual void volatile when where while with yield
  select insert update delete create table values into join left right inner outer on group order by having limit distinct`.split(/\s+/),
);
const STRINGS = String.raw`"""[^]*?(?:"""|$)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'|${"`"}(?:[^${"`"}\\]|\\.)*${"`"}?`;
const REST = String.raw`\b\d[\w.]*|[A-Za-z_]\w*`;
const SLASHES = String.raw`//[^\n]*|/\*[^]*?(?:\*/|$)`;
const HASHES = String.raw`#[^\n]*`;
const DASHES = String.raw`--[^\n]*`;
const TAGS = String.raw`<!--[^]*?(?:-->|$)`;
const COMMENTS = [
  [HASHES, "bash sh shell zsh console python py ruby rb perl r yaml yml toml ini make makefile dockerfile elixir julia nix"],
  [`${DASHES}|${String.raw`/\*[^]*?(?:\*/|$)`}`, "sql lua haskell hs elm ada"],
  [TAGS, "html xml svg vue markdown md"],
];
const PLAIN = new Set(["", "text", "txt", "plain", "plaintext", "output", "diff"]);

/** A block of code with its language and a button that copies it. */
export function codeBlock(text, language) {
  const name = language.toLowerCase();
  const head = element("div.head", {}, element("span", {}, language), copyButton("Copy the code", () => text));
  const pre = element("pre", { tabIndex: 0, role: "region", "aria-label": `Code ${language}`.trim() }, element("code", {}, coloured(text, name)));
  return element("div.code", {}, head, pre);
}

/** `text` as strings and spans. */
export function coloured(text, language) {
  if (PLAIN.has(language)) return [text];
  const comments = COMMENTS.find(([, names]) => names.split(" ").includes(language))?.[0] ?? SLASHES;
  const told = [];
  let from = 0;
  for (const found of text.matchAll(new RegExp(`(${comments})|(${STRINGS})|${REST}`, "g"))) {
    const kind = kindOf(found);
    if (!kind) continue;
    told.push(text.slice(from, found.index), element(`span.${kind}`, {}, found[0]));
    from = found.index + found[0].length;
  }
  return [...told, text.slice(from)];
}

function kindOf([word, comment, string]) {
  if (comment) return "comment";
  if (string) return "string";
  if (/^\d/.test(word)) return "number";
  return WORDS.has(word) || WORDS.has(word.toLowerCase()) ? "keyword" : null;
}

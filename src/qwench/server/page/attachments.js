// What goes along with a message: pictures, PDFs, videos and texts, from a file, a drop or the clipboard.

import { element, icon, iconButton } from "./element.js";

const MOST = 24 * 2 ** 20; // bytes of all together: in base64 they still fit a request's 32 MiB
const MOST_TEXT = 2 ** 20;
const TEXTUAL = /^(text\/|application\/(json|xml|javascript|x-sh|toml|yaml))|\.(md|txt|csv|json|ya?ml|toml|ini|py|js|ts|c|h|cpp|rs|go|java|sh|sql|html|css|log)$/i;

export class Attachments {
  /** Shown in `host`; `onproblem(sentence)` hears of what cannot be taken. */
  constructor(host, onproblem) {
    this.host = host;
    this.onproblem = onproblem;
    this.files = [];
  }

  async add(files) {
    for (const file of files) {
      const kind = kindOf(file);
      if (!kind) this.onproblem(`${file.name} is neither picture, PDF, video nor text.`);
      else if (this.#size() + file.size > MOST || (kind === "text" && file.size > MOST_TEXT)) this.onproblem(`${file.name} is too large to be sent.`);
      else this.files.push({ kind, name: file.name || kind, size: file.size, ...(await read(file, kind)) });
    }
    this.show();
  }

  /** What was attached, which then no longer is. */
  take() {
    const taken = this.files.map(({ kind, name, url, text }) => (kind === "text" ? { kind, name, text } : { kind, name, url }));
    this.set([]);
    return taken;
  }

  set(files) {
    this.files = files;
    this.show();
  }

  show() {
    this.host.hidden = this.files.length === 0;
    const remove = (file) => iconButton("close", `Remove ${file.name}`, () => this.set(this.files.filter((other) => other !== file)));
    this.host.replaceChildren(...this.files.map((file) => element("li", {}, attachment(file), remove(file))));
  }

  #size() {
    return this.files.reduce((sum, file) => sum + (file.size ?? 0), 0);
  }
}

/** How an attachment looks. */
export function attachment({ kind, name, url }) {
  if (kind === "image") return element("img", { src: url, alt: name, title: name });
  return element("span.file", { title: name }, icon("paper"), element("span", {}, name));
}

function kindOf({ type, name }) {
  if (type.startsWith("image/")) return "image";
  if (type.startsWith("video/")) return "video";
  if (type === "application/pdf") return "document";
  return TEXTUAL.test(type) || TEXTUAL.test(name) ? "text" : null;
}

async function read(file, kind) {
  if (kind === "text") return { text: await file.text() };
  const reader = new FileReader();
  const done = new Promise((resolve, reject) => Object.assign(reader, { onload: resolve, onerror: () => reject(reader.error) }));
  reader.readAsDataURL(file);
  await done;
  return { url: reader.result };
}

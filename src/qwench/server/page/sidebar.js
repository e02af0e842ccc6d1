// The list of conversations, by day, and the search in their titles. On a narrow screen it lies over the page.

import { titleOf } from "./conversation.js";
import { element } from "./element.js";

const NARROW = matchMedia("(max-width: 52rem)");
const DAY = 24 * 60 * 60 * 1000;
const find = (id) => document.getElementById(id);

export class Sidebar {
  /** `running(id)` says whether a conversation is being answered. */
  constructor(running) {
    this.running = running;
    this.heads = [];
    find("search").addEventListener("input", () => this.#list());
    find("open-sidebar").addEventListener("click", () => this.set(true));
    find("close-sidebar").addEventListener("click", () => this.#close());
    find("sidebar").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !NARROW.matches) return;
      event.stopPropagation(); // Escape would stop the answer
      this.#close();
    });
    find("veil").addEventListener("click", () => this.set(false));
    NARROW.addEventListener("change", () => this.set(!NARROW.matches));
    this.set(!NARROW.matches);
  }

  set(open) {
    document.body.classList.toggle("with-sidebar", open);
    find("sidebar").inert = !open;
    find("open-sidebar").hidden = open && !NARROW.matches;
    if (open && NARROW.matches) find("close-sidebar").focus();
  }

  /** Out of the way of what was just opened. */
  leave() {
    if (NARROW.matches) this.set(false);
  }

  show(heads, current) {
    this.heads = heads;
    this.current = current;
    this.#list();
  }

  #close() {
    this.set(false);
    find("open-sidebar").focus();
  }

  #list() {
    const wanted = find("search").value.trim().toLowerCase();
    const found = this.heads.filter((head) => titleOf(head).toLowerCase().includes(wanted));
    const groups = Map.groupBy(found, ({ changed }) => dayOf(changed));
    const listed = [...groups].flatMap(([day, heads]) => [element("h2", {}, day), element("ul", {}, heads.map((head) => this.#entry(head)))]);
    find("conversations").replaceChildren(...(listed.length ? listed : [element("p.none", {}, wanted ? "No title has that." : "Nothing said yet.")]));
  }

  #entry(head) {
    const link = element("a", { href: `#${head.id}`, title: titleOf(head) }, titleOf(head));
    if (head.id === this.current) link.setAttribute("aria-current", "page");
    if (this.running(head.id)) link.classList.add("running");
    return element("li", {}, link);
  }
}

function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 6 * DAY) return "This week";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

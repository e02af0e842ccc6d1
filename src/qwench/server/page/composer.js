// Where a message is written: the text, what goes along with it, how long the model may think, send and stop.

import { Attachments } from "./attachments.js";
import { BUDGETS } from "./settings.js";

const FINE = matchMedia("(pointer: fine)");
const find = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

export class Composer {
  /** `actions`: send(text, files), stop(), problem(sentence). */
  constructor(settings, actions) {
    this.settings = settings;
    this.actions = actions;
    this.form = find("composer");
    this.text = find("message");
    this.attachments = new Attachments(find("attachments"), actions.problem);
    this.editing = null; // the index of the turn whose place the message will take
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.#send()));
    this.text.addEventListener("input", () => this.#fit());
    this.text.addEventListener("keydown", (event) => this.#onKey(event));
    find("stop").addEventListener("click", actions.stop);
    find("cancel-edit").addEventListener("click", () => this.clear());
    this.#takeFiles();
    this.#thinking();
  }

  /** While an answer runs it can be stopped, and nothing be sent. */
  set running(running) {
    this.busy = running;
    find("send").hidden = running;
    find("stop").hidden = !running;
  }

  /** Put a message that was sent back, to be changed. */
  edit(index, { text, files }) {
    this.#write(text, [...files]);
    this.editing = index;
    find("editing").hidden = false;
  }

  suggest(text) {
    this.#write(text, []);
    this.#send();
  }

  clear() {
    this.editing = null;
    find("editing").hidden = true;
    this.#write("", []);
  }

  focus() {
    if (FINE.matches) this.text.focus(); // on a phone it would open the keyboard
  }

  #write(text, files) {
    this.text.value = text;
    this.attachments.set(files);
    this.#fit();
    this.focus();
  }

  #send() {
    const text = this.text.value.trim();
    if (this.busy || (!text && !this.attachments.files.length)) return;
    const index = this.editing;
    const files = this.attachments.take();
    this.clear();
    this.actions.send(text, files, index);
  }

  #onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && FINE.matches) {
      event.preventDefault();
      this.#send();
    }
  }

  #fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight}px`;
  }

  #takeFiles() {
    const chosen = find("files");
    const drop = find("drop");
    find("attach").addEventListener("click", () => chosen.click());
    chosen.addEventListener("change", async () => {
      await this.attachments.add([...chosen.files]);
      chosen.value = "";
    });
    this.text.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.attachments.add(files);
    });
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      drop.hidden = false;
    });
    addEventListener("dragleave", (event) => (drop.hidden = event.relatedTarget === null || drop.hidden));
    addEventListener("drop", (event) => {
      drop.hidden = true;
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.attachments.add([...event.dataTransfer.files]);
    });
  }

  #thinking() {
    const budget = find("budget");
    const choices = [...this.form.querySelectorAll('input[name="thinking"]')];
    budget.max = BUDGETS.length - 1;
    for (const choice of choices) choice.addEventListener("change", () => (this.settings.set({ thinking: choice.value }), this.#showThinking()));
    budget.addEventListener("input", () => {
      this.settings.set({ thinking: "on", budget: BUDGETS[budget.value] });
      this.#showThinking();
    });
    this.#showThinking();
  }

  #showThinking() {
    const { thinking, budget } = this.settings.values;
    const slider = find("budget");
    const bound = budget === null ? "no bound" : `${whole.format(budget)} tokens`;
    this.form.querySelector(`input[name="thinking"][value="${thinking}"]`).checked = true;
    slider.value = BUDGETS.indexOf(budget);
    slider.ariaValueText = bound;
    find("budget-now").textContent = bound;
    find("thinking-now").textContent = { auto: "Thinking", off: "No thinking", on: budget === null ? "Thinking freely" : `Thinking ≤ ${whole.format(budget)}` }[thinking];
  }
}

// The page: puts its parts together, and carries a message to the server and the answer back.

import { finish, fold, newAnswer, openCalls } from "./answer.js";
import { Composer } from "./composer.js";
import { checked, entitle, markdown, messages, newConversation, settled, titleOf } from "./conversation.js";
import { announce, download } from "./element.js";
import { Library } from "./library.js";
import { Server, ServerError } from "./server.js";
import { Settings, settingsFields } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";

const SAVE_EVERY = 1500; // milliseconds, while an answer runs
const ASK_AGAIN = 1000;
const TRIES = { nano: ["What is 47 + 38?", "Tell me a story.", "What can you do?"] };
const find = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

class App {
  constructor(library) {
    this.library = library;
    this.settings = new Settings();
    this.server = new Server(() => this.settings.values.key);
    this.runs = new Map(); // conversation id -> {conversation, abort} of every answer that is under way
    this.models = [];
    this.version = "";
    this.conversation = newConversation();
    this.sidebar = new Sidebar((id) => this.runs.has(id));
    this.composer = new Composer(this.settings, {
      send: (text, files, index) => this.send(text, files, index),
      stop: () => this.stop(),
      problem: (sentence) => this.notice(sentence),
    });
    this.thread = new Thread(find("thread"), find("to-end"), {
      edit: (index) => this.composer.edit(index, this.conversation.turns[index]),
      again: () => this.again(),
      stopThinking: (answer) => this.stopThinking(answer),
      tell: (call, text) => this.tell(call, text),
      suggest: (text) => this.composer.suggest(text),
    });
    this.#listen();
  }

  async start() {
    if (!this.library.lasting) this.notice("This browser keeps nothing for this page: export what you want to keep.");
    await this.open();
    await this.connect();
  }

  /** Learn what is served, waiting for the model where it is still being loaded. */
  async connect() {
    try {
      for (;;) {
        const { status, progress, model } = await this.server.health();
        if (status === "ready") break;
        this.notice(`${model} is being loaded: ${Math.floor(100 * (progress ?? 0))} %`);
        await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN));
      }
      this.models = await this.server.models();
      this.version = await this.server.version();
      this.notice("");
      this.show();
    } catch (failure) {
      this.failed(failure);
    }
  }

  get model() {
    return this.models.find(({ id }) => id === this.settings.values.model) ?? this.models[0];
  }

  /** The conversation that the address names, or a new one. */
  async open() {
    const id = location.hash.slice(1);
    const found = this.runs.get(id)?.conversation ?? (id ? await this.library.get(id) : undefined);
    if (found) this.conversation = this.runs.has(id) ? found : settled(found);
    else this.conversation = newConversation();
    this.composer.clear();
    this.sidebar.leave();
    this.show();
    await this.list();
  }

  show() {
    const { conversation, model } = this;
    const title = find("title");
    document.title = conversation.title ? `${conversation.title} · Qwench` : "Qwench";
    title.value = titleOf(conversation);
    title.disabled = find("more").hidden = conversation.turns.length === 0;
    const greeting = model ? `${model.id} is listening.` : "";
    this.thread.show(conversation, greeting, TRIES[model?.id] ?? []);
    this.showRun();
  }

  showRun() {
    this.composer.running = this.runs.has(this.conversation.id);
    find("model").textContent = this.model?.id ?? "";
    const last = this.conversation.turns.findLast((turn) => turn.figures?.prompt);
    const used = last ? last.figures.prompt + (last.figures.tokens ?? 0) : 0;
    const window = this.model?.context_length;
    find("window").textContent = used && window ? `${whole.format(used)} of ${whole.format(window)}` : "";
    find("window").title = "Tokens of this conversation, of those the model can hold";
  }

  async list() {
    this.sidebar.show(await this.library.heads(), this.conversation.id);
  }

  async send(text, files, index) {
    const { conversation } = this;
    if (index !== null) conversation.turns.length = index;
    conversation.turns.push({ role: "user", text, files });
    entitle(conversation);
    if (location.hash.slice(1) !== conversation.id) history.pushState(null, "", `#${conversation.id}`);
    await this.run(conversation);
  }

  async again() {
    const { turns } = this.conversation;
    if (this.runs.has(this.conversation.id)) return;
    turns.length = turns.findLastIndex((turn) => turn.role === "assistant");
    await this.run(this.conversation);
  }

  /** Give the model the result of a call; when all calls have theirs, it goes on. */
  async tell(call, text) {
    const { conversation } = this;
    const last = conversation.turns.findLast((turn) => turn.role === "assistant");
    conversation.turns.push({ role: "tool", callId: call.id, text });
    if (openCalls(last, conversation.turns).length) this.thread.update();
    else await this.run(conversation);
  }

  /** Have the server answer `conversation`, and show it as it comes. */
  async run(conversation) {
    const { settings, server } = this;
    const asked = messages(conversation, settings.values.system);
    const answer = newAnswer(this.model?.id ?? "");
    const abort = new AbortController();
    conversation.turns.push(answer);
    conversation.changed = Date.now();
    this.runs.set(conversation.id, { conversation, abort });
    this.show();
    announce("Sent");
    await this.keep(conversation);
    const clock = setInterval(() => this.keep(conversation), SAVE_EVERY);
    try {
      const request = { model: answer.model || undefined, messages: asked, ...settings.fields, stream: true, stream_options: { include_usage: true } };
      for await (const event of server.answer(request, abort.signal)) {
        fold(answer, event);
        this.paint(conversation);
      }
      finish(answer, "done");
    } catch (failure) {
      if (abort.signal.aborted) finish(answer, "stopped");
      else finish(answer, "failed", this.failed(failure));
    }
    clearInterval(clock);
    this.runs.delete(conversation.id);
    await this.keep(conversation);
    if (conversation === this.conversation) this.ended(answer);
  }

  ended(answer) {
    this.thread.update();
    this.showRun();
    announce(answer.problem ?? (answer.text || "The answer is complete."));
    this.composer.focus();
  }

  /** Show at the next frame what came since the last one. */
  paint(conversation) {
    if (conversation !== this.conversation || this.painting) return;
    this.painting = requestAnimationFrame(() => {
      this.painting = null;
      this.thread.update();
    });
  }

  stop() {
    this.runs.get(this.conversation.id)?.abort.abort();
  }

  async stopThinking(answer) {
    try {
      await this.server.endThinking(answer.id);
    } catch (failure) {
      this.notice(failure.message);
    }
  }

  async keep(conversation) {
    try {
      await this.library.put(conversation);
      await this.list();
    } catch {
      this.notice("This browser has no room left for the conversation; export it and delete others.");
    }
  }

  /** Show what went wrong; the sentence. A key that is missing is asked for. */
  failed(failure) {
    const sentence = failure instanceof ServerError ? failure.message : `The page failed: ${failure.message}`;
    if (failure.status === 401) this.openSettings("password");
    this.notice(sentence);
    return sentence;
  }

  notice(sentence) {
    const notice = find("notice");
    notice.hidden = !sentence;
    notice.textContent = sentence;
    if (sentence) announce(sentence);
  }

  openSettings(focused) {
    const dialog = find("settings");
    const about = `Qwench ${this.version}`;
    dialog.querySelector(".fields").replaceChildren(...settingsFields(this.settings, this.models, about, this.#dataActions()));
    if (!dialog.open) dialog.showModal();
    if (focused) dialog.querySelector(`input[type="${focused}"]`).focus();
  }

  #dataActions() {
    return {
      keyChanged: () => this.connect(),
      exportAll: async () => {
        const heads = await this.library.heads();
        const conversations = await Promise.all(heads.map(({ id }) => this.library.get(id)));
        download("qwench-conversations.json", "application/json", JSON.stringify({ conversations }));
      },
      importFrom: (file) => this.import(file),
      deleteAll: async () => {
        if (!confirm("Delete every conversation kept in this browser?")) return;
        for (const { abort } of this.runs.values()) abort.abort();
        await this.library.clear();
        location.hash = "";
        await this.open();
      },
    };
  }

  async import(file) {
    const found = await file.text().then(JSON.parse).catch(() => null);
    const given = Array.isArray(found?.conversations) ? found.conversations : [found];
    const known = given.map(checked).filter(Boolean);
    for (const conversation of known) await this.library.put(conversation);
    await this.list();
    this.notice(known.length ? `${known.length} of ${given.length} conversations were imported.` : `${file.name} holds no conversation.`);
  }

  #listen() {
    addEventListener("popstate", () => this.open()); // links to conversations are fragments
    find("new").addEventListener("click", () => this.fresh());
    find("open-settings").addEventListener("click", () => this.openSettings());
    find("settings").addEventListener("close", () => this.showRun()); // another model may have been chosen
    find("title").addEventListener("change", (event) => {
      this.conversation.title = event.target.value.trim();
      this.keep(this.conversation);
      document.title = `${titleOf(this.conversation)} · Qwench`;
    });
    find("export-markdown").addEventListener("click", () => this.#export("md", "text/markdown", markdown(this.conversation)));
    find("export-json").addEventListener("click", () => this.#export("json", "application/json", JSON.stringify(this.conversation, null, 1)));
    find("delete").addEventListener("click", () => this.delete());
    addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("click", ({ target }) => {
      for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
    });
  }

  fresh() {
    history.pushState(null, "", location.pathname);
    this.open().then(() => this.composer.focus());
  }

  async delete() {
    find("more").open = false;
    if (!confirm(`Delete “${titleOf(this.conversation)}”?`)) return;
    this.stop();
    await this.library.delete(this.conversation.id);
    this.fresh();
  }

  #export(ending, type, text) {
    find("more").open = false;
    download(`${titleOf(this.conversation).replace(/[^\p{L}\p{N}]+/gu, "-")}.${ending}`, type, text);
  }

  #onKey(event) {
    const menu = document.querySelector("details.menu[open]");
    if (event.key === "Escape" && menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    else if (event.altKey && event.code === "KeyN") {
      event.preventDefault();
      this.fresh();
    }
  }
}

new App(await Library.open()).start();

// The conversation on the screen: its turns in order, and the end kept in sight while the reader is there.

import { element } from "./element.js";
import { AnswerView, userTurn } from "./turn.js";

const NEAR = 80; // pixels from the end that still count as the end

export class Thread {
  /** `actions`: edit(index), again(), stopThinking(answer), tell(call, text), suggest(text). */
  constructor(host, toEnd, actions) {
    this.host = host;
    this.toEnd = toEnd;
    this.actions = actions;
    this.views = new Map(); // answer -> its view
    this.follows = true;
    host.addEventListener("scroll", () => this.#noteScroll());
    toEnd.addEventListener("click", () => this.end());
  }

  /** Show `conversation` from its beginning; `suggestions` where nothing was said yet. */
  show(conversation, greeting, suggestions) {
    this.turns = conversation.turns;
    this.views.clear();
    if (this.turns.length) this.host.replaceChildren(...this.turns.map((turn, index) => this.#made(turn, index)).filter(Boolean));
    else this.host.replaceChildren(this.#empty(greeting, suggestions));
    this.update();
    this.end();
  }

  /** Show what answers have become. */
  update() {
    const results = new Map(this.turns.filter((turn) => turn.role === "tool").map((turn) => [turn.callId, turn.text]));
    const last = this.turns.findLast((turn) => turn.role === "assistant");
    for (const [answer, view] of this.views) view.update(results, answer === last);
    if (this.follows) this.host.scrollTop = this.host.scrollHeight;
  }

  end() {
    this.follows = true;
    this.host.scrollTop = this.host.scrollHeight;
    this.toEnd.hidden = true;
  }

  #noteScroll() {
    const { scrollTop, clientHeight, scrollHeight } = this.host;
    this.follows = scrollTop + clientHeight > scrollHeight - NEAR;
    this.toEnd.hidden = this.follows;
  }

  #made(turn, index) {
    if (turn.role === "user") return userTurn(turn, () => this.actions.edit(index));
    if (turn.role === "tool") return null; // shown with the call it belongs to
    const { again, tell, stopThinking } = this.actions;
    const view = new AnswerView(turn, { again, tell, stopThinking: () => stopThinking(turn) });
    this.views.set(turn, view);
    return view.root;
  }

  #empty(greeting, suggestions) {
    const offered = suggestions.map((text) => element("li", {}, element("button", { type: "button", onclick: () => this.actions.suggest(text) }, text)));
    return element("div.empty", {}, element("p.greeting", {}, greeting), offered.length ? element("ul.suggestions", {}, offered) : null);
  }
}

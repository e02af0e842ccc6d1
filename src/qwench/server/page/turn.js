// How turns look: what the user said, and an answer with its thinking, calls and figures, which grows while it is shown.

import { RUNNING } from "./answer.js";
import { attachment } from "./attachments.js";
import { coloured } from "./code.js";
import { copyButton, element, iconButton } from "./element.js";
import { showMarkdown } from "./markdown.js";

const CLOSED = {
  soft: "ended at its budget",
  budget: "cut at its budget",
  reserve: "cut to leave room for the answer",
  loop: "cut because it went in circles",
  control: "ended by you",
};
const whole = new Intl.NumberFormat("en");

/** A turn of the user; `onedit` makes a button. */
export function userTurn({ text, files }, onedit) {
  const shown = files.length ? element("ul.files", {}, files.map((file) => element("li", {}, attachment(file)))) : null;
  const tools = element("div.tools", {}, copyButton("Copy the message", () => text), iconButton("edit", "Edit the message", onedit));
  return element("article.turn.user", { "aria-label": "You" }, shown, text ? element("p.said", {}, text) : null, tools);
}

export class AnswerView {
  /** `actions`: stopThinking(), again(), tell(call, text). */
  constructor(answer, actions) {
    this.answer = answer;
    this.actions = actions;
    this.summary = element("summary");
    this.thoughts = element("div.thoughts", { tabIndex: 0, role: "region", "aria-label": "Thinking" });
    this.fold = element("details", {}, this.summary, this.thoughts);
    this.stopThinking = element("button.small", { type: "button", onclick: actions.stopThinking }, "Stop thinking");
    this.thinking = element("div.thinking", { hidden: true }, this.fold, this.stopThinking);
    this.waiting = element("p.waiting", { hidden: true });
    this.prose = element("div.prose");
    this.calls = element("div.calls");
    this.problem = element("p.problem", { hidden: true });
    this.foot = element("footer", { hidden: true });
    const parts = [this.waiting, this.thinking, this.prose, this.calls, this.problem, this.foot];
    this.root = element("article.turn.answer", { "aria-label": `Answer of ${answer.model || "the model"}` }, parts);
  }

  /** Show the answer as it is now; `results` are those of its calls by id, `last` says whether it is the newest turn. */
  update(results, last) {
    const { answer } = this;
    const running = answer.state === RUNNING;
    const stamp = JSON.stringify([answer.state, last, [...results]]);
    if (!running && stamp === this.stamp) return; // nothing about it has changed
    this.stamp = stamp;
    this.root.ariaBusy = String(running);
    this.#showWaiting(running);
    this.#showThinking(running);
    showMarkdown(this.prose, answer.text);
    this.prose.classList.toggle("growing", running && answer.text !== "");
    this.#showCalls(running, results, last);
    const problem = problemOf(answer);
    this.problem.hidden = !problem;
    this.problem.textContent = problem;
    this.#showFoot(running, last);
  }

  #showWaiting(running) {
    const { text, thinking, calls, progress } = this.answer;
    this.waiting.hidden = !running || Boolean(text || thinking || calls.length);
    if (this.waiting.hidden) return;
    this.waiting.textContent = progress > 0 ? `Reading the prompt · ${Math.floor(100 * progress)} %` : "Reading the prompt";
  }

  #showThinking(running) {
    const { thinking, figures, thoughtFrom, closedBy } = this.answer;
    this.thinking.hidden = !thinking;
    if (!thinking) return;
    const now = running && figures.thoughtSeconds === undefined;
    const seconds = now ? (Date.now() - thoughtFrom) / 1000 : figures.thoughtSeconds;
    const spent = seconds === undefined ? "" : ` for ${duration(seconds)}`; // unknown where the page was closed meanwhile
    const told = [
      `${now ? "Thinking" : "Thought"}${spent}`,
      figures.thinkingTokens ? `${whole.format(figures.thinkingTokens)} tokens` : "",
      now ? "" : (CLOSED[closedBy] ?? ""),
    ];
    this.summary.textContent = told.filter(Boolean).join(" · ");
    this.stopThinking.hidden = !now;
    this.thinking.classList.toggle("now", now);
    const atEnd = this.thoughts.scrollTop + this.thoughts.clientHeight > this.thoughts.scrollHeight - 30;
    this.thoughts.textContent = thinking.trim();
    if (now && atEnd) this.thoughts.scrollTop = this.thoughts.scrollHeight;
  }

  #showCalls(running, results, last) {
    const { calls } = this.answer;
    const shape = JSON.stringify([calls, [...results], running, last]);
    if (shape === this.shape) return; // a form that is being filled in stays
    this.shape = shape;
    const ask = !running && last;
    this.calls.replaceChildren(...calls.map((call) => callCard(call, results.get(call.id), ask ? this.actions.tell : null)));
  }

  #showFoot(running, last) {
    this.foot.hidden = running;
    if (running) return;
    const { answer, actions } = this;
    const again = last ? iconButton("again", "Answer again", actions.again) : null;
    const figures = element("span.figures", { title: answer.reuse ?? "" }, figuresOf(answer));
    const warnings = answer.warnings ? element("span.warnings", {}, answer.warnings) : null;
    this.foot.replaceChildren(...[copyButton("Copy the answer", () => answer.text), again, figures, warnings].filter(Boolean));
  }
}

/** What an answer took, in a line. */
export function figuresOf({ figures, state }) {
  const { tokens, perSecond, cached, prompt, seconds } = figures;
  const told = [
    perSecond ? `${perSecond < 100 ? perSecond.toFixed(1) : whole.format(Math.round(perSecond))} tokens/s` : "",
    tokens ? `${whole.format(tokens)} tokens` : "",
    prompt ? `${whole.format(cached)} of ${whole.format(prompt)} reused` : "",
    seconds === undefined ? "" : duration(seconds),
    state === "stopped" ? "stopped" : "",
  ];
  return told.filter(Boolean).join(" · ");
}

function problemOf({ state, problem, reason, text, calls }) {
  if (state === "failed") return problem;
  if (state === "done" && reason === "length") return "The answer was cut: it reached the most tokens it may have.";
  if (state === "done" && !text && !calls.length) return "The answer is empty.";
  return "";
}

function callCard({ id, name, arguments: given }, result, tell) {
  const card = element("div.call", {}, element("p.name", {}, name), element("pre", { tabIndex: 0, role: "region", "aria-label": `Arguments of ${name}` }, element("code", {}, coloured(pretty(given), "json"))));
  if (result !== undefined) card.append(element("p.result", {}, result));
  else if (tell) card.append(resultForm(name, (text) => tell({ id, name }, text)));
  return card;
}

function resultForm(name, send) {
  const area = element("textarea", { rows: 2, "aria-label": `Result of ${name}`, placeholder: "What the tool gives back" });
  const form = element("form", {}, area, element("button", { type: "submit" }, "Give the result"));
  form.addEventListener("submit", (event) => (event.preventDefault(), send(area.value)));
  return form;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

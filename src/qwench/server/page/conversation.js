// A conversation: turns of user, assistant and tool, as they are kept; as the messages of a request; as Markdown.

import { RUNNING } from "./answer.js";

const ROLES = ["user", "assistant", "tool"];
const TITLE = 60; // characters
const UNTITLED = "New conversation";

export function newConversation() {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", changed: Date.now(), turns: [] };
}

export function titleOf(conversation) {
  return conversation.title || UNTITLED;
}

/** A title out of the first message, for a conversation that has none. */
export function entitle(conversation) {
  const first = conversation.turns.find((turn) => turn.role === "user");
  const line = (first?.text.trim() || first?.files[0]?.name || "").split("\n")[0];
  conversation.title ||= line.length > TITLE ? `${line.slice(0, TITLE - 1).trimEnd()}…` : line;
}

/** The turns as OpenAI's messages, with `system` before them. An answer that failed without a word is left out. */
export function messages(conversation, system) {
  const told = conversation.turns.map((turn) => MESSAGE[turn.role](turn)).filter((message) => message !== null);
  return system.trim() ? [{ role: "system", content: system }, ...told] : told;
}

const MESSAGE = {
  user: ({ text, files }) => {
    if (!files.length) return { role: "user", content: text };
    const parts = files.map(part);
    return { role: "user", content: text ? [...parts, { type: "text", text }] : parts };
  },
  assistant: ({ text, thinking, calls }) => {
    if (!text && !calls.length) return null;
    const message = { role: "assistant", content: text };
    if (thinking) message.reasoning_content = thinking;
    if (calls.length) {
      const form = (call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } });
      message.tool_calls = calls.map(form);
    }
    return message;
  },
  tool: ({ callId, text }) => ({ role: "tool", tool_call_id: callId, content: text }),
};

function part({ kind, name, url, text }) {
  if (kind === "text") return { type: "text", text: `${name}:\n${text}\n` };
  if (kind === "document") return { type: "file", file: { filename: name, file_data: url } };
  return { type: `${kind}_url`, [`${kind}_url`]: { url } };
}

/** The conversation to be read elsewhere. */
export function markdown(conversation) {
  const told = [`# ${titleOf(conversation)}`];
  for (const turn of conversation.turns) {
    told.push(`**${turn.role === "user" ? "You" : turn.role === "tool" ? "Tool" : turn.model}**`);
    for (const file of turn.files ?? []) told.push(`*${file.name}*`);
    if (turn.thinking) told.push(turn.thinking.trim().replace(/^/gm, "> "));
    for (const call of turn.calls ?? []) told.push(`\`\`\`json\n${JSON.stringify({ name: call.name, arguments: call.arguments })}\n\`\`\``);
    if (turn.text) told.push(turn.text.trim());
  }
  return `${told.join("\n\n")}\n`;
}

/** What a file said is a conversation, with nothing in it that is none of ours; null if it is not one. */
export function checked(found) {
  if (typeof found?.id !== "string" || !/^[\w-]{1,64}$/.test(found.id) || !Array.isArray(found.turns)) return null;
  if (!found.turns.every((turn) => ROLES.includes(turn?.role) && typeof turn.text === "string")) return null;
  const turns = found.turns.map((turn) => {
    if (turn.role === "tool") return { role: "tool", callId: word(turn.callId), text: turn.text };
    if (turn.role === "user") return { role: "user", text: turn.text, files: list(turn.files).map(checkedFile).filter(Boolean) };
    const calls = list(turn.calls).map((call) => ({ id: word(call?.id), name: word(call?.name), arguments: word(call?.arguments) }));
    const figures = Object.entries(turn.figures ?? {}).filter(([, value]) => Number.isFinite(value));
    return { role: "assistant", model: word(turn.model), state: "done", text: turn.text, thinking: word(turn.thinking), calls, figures: Object.fromEntries(figures) };
  });
  return { id: found.id, title: word(found.title), changed: Number(found.changed) || Date.now(), turns };
}

function checkedFile(file) {
  const { kind, name, url, text } = file ?? {};
  if (kind === "text") return { kind, name: word(name), text: word(text) };
  return ["image", "video", "document"].includes(kind) && word(url).startsWith("data:") ? { kind, name: word(name), url } : null;
}

const word = (value) => (typeof value === "string" ? value : "");
const list = (value) => (Array.isArray(value) ? value : []);

/** After a reload: what was running then has ended with the page. */
export function settled(conversation) {
  for (const turn of conversation.turns) if (turn.state === RUNNING) turn.state = "stopped";
  return conversation;
}

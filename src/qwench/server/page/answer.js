// An answer: what the chunks of its stream have told so far, as it is kept. Knows no element and no server.

export const RUNNING = "running";

/** A turn of the assistant before its first chunk. */
export function newAnswer(model) {
  return { role: "assistant", model, state: RUNNING, began: Date.now(), text: "", thinking: "", calls: [], figures: {} };
}

/** Add what one event of the stream tells; see Server.answer. */
export function fold(answer, event) {
  if (event.warnings) answer.warnings = event.warnings;
  if (event.note !== undefined) note(answer, event.note);
  if (!event.chunk) return;
  const { id, choices, usage, timings } = event.chunk;
  answer.id ??= id;
  delete answer.progress;
  for (const choice of choices ?? []) foldChoice(answer, choice);
  if (timings) count(answer.figures, timings);
  if (usage) answer.figures.thinkingTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
}

/** How a running answer ended: "done", "stopped" by hand, or "failed" for a `problem`. */
export function finish(answer, state, problem) {
  if (answer.thinking && answer.figures.thoughtSeconds === undefined) thought(answer);
  answer.state = state;
  answer.figures.seconds ??= (Date.now() - answer.began) / 1000;
  if (problem) answer.problem = problem;
  delete answer.progress;
}

/** The calls of `answer` that `turns` hold no result for. */
export function openCalls(answer, turns) {
  const told = new Set(turns.filter((turn) => turn.role === "tool").map((turn) => turn.callId));
  return answer.calls.filter((call) => !told.has(call.id));
}

function note(answer, text) {
  const reading = text.match(/^reading the prompt: (\d+) of (\d+)/);
  if (reading) answer.progress = Number(reading[1]) / Number(reading[2]);
  else if (text !== "keep-alive") answer.reuse = text;
}

function foldChoice(answer, { delta = {}, finish_reason: reason, finish_details: details }) {
  if (delta.reasoning_content) {
    answer.thoughtFrom ??= Date.now();
    answer.thinking += delta.reasoning_content;
  }
  if (delta.content || delta.tool_calls) {
    if (answer.thinking && answer.figures.thoughtSeconds === undefined) thought(answer);
    answer.text += delta.content ?? "";
  }
  for (const part of delta.tool_calls ?? []) {
    const call = (answer.calls[part.index] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name ||= part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  if (reason) answer.reason = reason;
  if (details) answer.closedBy = details.closed_by;
}

function thought(answer) {
  answer.figures.thoughtSeconds = (Date.now() - answer.thoughtFrom) / 1000;
  delete answer.thoughtFrom;
}

function count(figures, timings) {
  figures.tokens = timings.predicted_n;
  figures.perSecond = timings.predicted_per_second;
  figures.cached = timings.cache_n;
  figures.prompt = timings.cache_n + timings.prompt_n;
  figures.seconds = (timings.prompt_ms + timings.predicted_ms) / 1000;
}

// The server as the page sees it: what it serves, whether it is ready, and answers as they come. Knows no element.

/** What the server refused, or that it did not answer; `message` is a sentence for people. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export class Server {
  /** `key()` is the API key, or empty. */
  constructor(key) {
    this.key = key;
  }

  /** {status, model, progress}: ready, loading, or why not. */
  async health() {
    const response = await this.#fetch("/health", {}, [503]);
    return response.json();
  }

  /** The models that are served, as /v1/models tells them. */
  async models() {
    return (await (await this.#fetch("/v1/models")).json()).data;
  }

  async version() {
    return (await (await this.#fetch("/version")).json()).version;
  }

  /** End the thinking of the running response `id`; it goes on to answer. */
  async endThinking(id) {
    await this.#post("/v1/chat/completions/control", { id, action: "reasoning_end" });
  }

  /** The answer to `request`: {chunk} of it, {note} while one waits, {warnings} about the request. Ends when it is whole. */
  async *answer(request, signal) {
    const response = await this.#post("/v1/chat/completions", request, signal);
    const warnings = response.headers.get("x-qwench-warnings");
    if (warnings) yield { warnings };
    for await (const { note, data } of events(response.body)) {
      if (note !== undefined) yield { note };
      else if (data === "[DONE]") return;
      else {
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ServerError(chunk.error.message);
        yield { chunk };
      }
    }
    throw new ServerError("The connection ended before the answer was whole.");
  }

  #post(path, body, signal) {
    const headers = { "content-type": "application/json" };
    return this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  async #fetch(path, options = {}, alsoFine = []) {
    const key = this.key();
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (failure) {
      if (failure.name === "AbortError") throw failure;
      throw new ServerError(`The server at ${location.host} does not answer.`);
    }
    if (response.ok || alsoFine.includes(response.status)) return response;
    const told = await response.json().catch(() => null);
    throw new ServerError(told?.error?.message ?? `The server answered with status ${response.status}.`, response.status);
  }
}

/** Server-sent events: {data} of each, {note} of each comment. Other fields mean nothing here and are passed over. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(":")) yield { note: line.slice(1).trim() };
      else if (line.startsWith("data:")) data.push(line.slice(5).trim());
      else if (line === "" && data.length) {
        yield { data: data.join("\n") };
        data = [];
      }
    }
  }
}

"""What the body of ``/v1/responses`` may hold: its table of fields, and the type of the supported ones."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from qwench.server.schemas import NAMED, Endpoint, FieldRule, Treatment

HERE: tuple[Endpoint, ...] = ("responses",)
_S, _I, _R = Treatment.SUPPORTED, Treatment.IGNORED, Treatment.REFUSED

FIELDS: tuple[FieldRule, ...] = (
    FieldRule("model", HERE, _S, NAMED),
    FieldRule(
        "input",
        HERE,
        _S,
        "text, or a list of items: message, reasoning, function_call and its output, custom_tool_call and its output, "
        "local_shell_call and its output, compaction, item_reference",
    ),
    FieldRule("instructions", HERE, _S, "the system prompt of this response; it is not taken on by the next"),
    FieldRule("previous_response_id", HERE, _S, "a stored response, whose conversation goes on"),
    FieldRule("store", HERE, _S, "false keeps nothing; absent means true: in memory, as long as there is room"),
    FieldRule("background", HERE, _S, "true answers at once and works on; ask for the response by its id"),
    FieldRule("stream", HERE, _S, "server-sent events"),
    FieldRule("max_output_tokens", HERE, _S, "the most tokens of the answer, its thinking included"),
    FieldRule("temperature", HERE, _S, "0 is greedy and switches the preset's penalties off"),
    FieldRule("top_p", HERE, _S, "nucleus; above 0, at most 1"),
    FieldRule("presence_penalty", HERE, _S, "-2 to 2"),
    FieldRule("frequency_penalty", HERE, _S, "-2 to 2"),
    FieldRule("top_logprobs", HERE, _S, "0 to 20, of the text"),
    FieldRule(
        "tools", HERE, _S, "function, custom, local_shell, and namespaces of these; those OpenAI runs are left out"
    ),
    FieldRule("tool_choice", HERE, _S, "auto, none, required, one function or custom tool, or allowed_tools"),
    FieldRule("parallel_tool_calls", HERE, _S, "false ends the answer after its first call"),
    FieldRule("reasoning", HERE, _S, "an object with effort: a thinking budget each"),
    FieldRule("text", HERE, _S, "an object with format: text, json_object or json_schema"),
    FieldRule("include", HERE, _S, "reasoning.encrypted_content, message.output_text.logprobs"),
    FieldRule("metadata", HERE, _S, "an object that is stored with the response"),
    FieldRule("service_tier", HERE, _S, "flex never displaces what is kept of other conversations; others do nothing"),
    # Accepted without effect: nothing in the answer's text depends on them.
    FieldRule("stream_options", HERE, _I, "no padding is sent", ({"include_obfuscation": False},)),
    FieldRule("truncation", HERE, _I, "nothing of the input is ever left out", ("disabled",)),
    FieldRule("max_tool_calls", HERE, _I, "no tools are run here"),
    FieldRule("user", HERE, _I, "requests are not attributed to users"),
    FieldRule("safety_identifier", HERE, _I, "requests are not attributed to users"),
    FieldRule("client_metadata", HERE, _I, "nothing is stored of the client"),
    FieldRule("prompt_cache_key", HERE, _I, "there is one cache"),
    FieldRule("prompt_cache_options", HERE, _I, "there is one cache"),
    FieldRule("prompt_cache_retention", HERE, _I, "there is one cache"),
    FieldRule("background_options", HERE, _I, "work in the background starts at once"),
    FieldRule("context_management", HERE, _I, "the conversation is read as it is sent"),
    FieldRule("moderation", HERE, _I, "nothing is moderated"),
    FieldRule("access_programs", HERE, _I, "there are none"),
    FieldRule("image", HERE, _I, "pictures are not compressed"),
    # Refused: ignoring them would change what the caller gets.
    FieldRule("conversation", HERE, _R, "send previous_response_id, or the whole conversation in input"),
    FieldRule("prompt", HERE, _R, "no prompts are kept here, send instructions and input"),
)


class ResponsesRequest(BaseModel):
    """``POST /v1/responses``. Items are checked by the translation, which names the place."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None

    @property
    def stores(self) -> bool:
        return self.store is not False

    def includes(self, name: str) -> bool:
        return name in (self.include or ())

"""What the body of ``/v1/messages`` may hold: its table of fields, and the type of the supported ones."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from qwench.server.schemas import NAMED, Endpoint, FieldRule, Treatment

HERE: tuple[Endpoint, ...] = ("messages",)
_S, _I, _R = Treatment.SUPPORTED, Treatment.IGNORED, Treatment.REFUSED

FIELDS: tuple[FieldRule, ...] = (
    FieldRule("model", HERE, _S, NAMED),
    FieldRule(
        "messages",
        HERE,
        _S,
        "a list of messages of user, assistant or system; content is text or blocks: text, image, document, "
        "search_result, thinking, tool_use, tool_result",
    ),
    FieldRule(
        "max_tokens", HERE, _S, "the most tokens of the answer, its thinking included; the window may end it too"
    ),
    FieldRule("system", HERE, _S, "text, or a list of text blocks"),
    FieldRule("stream", HERE, _S, "server-sent events"),
    FieldRule("temperature", HERE, _S, "0 is greedy and switches the preset's penalties off"),
    FieldRule("top_p", HERE, _S, "nucleus; above 0, at most 1"),
    FieldRule("top_k", HERE, _S, "0 or -1 keeps every token"),
    FieldRule("stop_sequences", HERE, _S, "a list of at most 32 texts; neither thinking nor calls are searched"),
    FieldRule("tools", HERE, _S, "tools with name and input_schema; those that Anthropic's servers run are left out"),
    FieldRule(
        "tool_choice", HERE, _S, "an object with type auto, any, tool (and name) or none, and disable_parallel_tool_use"
    ),
    FieldRule(
        "thinking", HERE, _S, "an object with type enabled (and budget_tokens), disabled or adaptive; absent: disabled"
    ),
    FieldRule("output_config", HERE, _S, "an object with effort, and format: a JSON schema the answer has to fit"),
    FieldRule("output_format", HERE, _S, "output_config.format, as it was called before"),
    FieldRule("cache_control", HERE, _S, "marks the last message as a beginning that is kept"),
    # Accepted without effect: nothing in the answer's text depends on them.
    FieldRule("metadata", HERE, _I, "nothing is stored"),
    FieldRule("service_tier", HERE, _I, "requests are served in order", ("auto", "standard_only")),
    FieldRule("speed", HERE, _I, "there is one speed", ("standard",)),
    FieldRule("container", HERE, _I, "no code is run here"),
    FieldRule("mcp_servers", HERE, _I, "this server calls no others", ([],)),
    FieldRule("context_management", HERE, _I, "the conversation is read as it is sent"),
    FieldRule("compaction", HERE, _I, "the conversation is read as it is sent"),
    FieldRule("inference_geo", HERE, _I, "it runs where this server stands"),
    FieldRule("diagnostics", HERE, _I, "what was reused stands in usage and in a header"),
    FieldRule("fallbacks", HERE, _I, "one model is served"),
    FieldRule("fallback_credit_token", HERE, _I, "one model is served"),
    FieldRule("user_profile_id", HERE, _I, "requests are not attributed to users"),
    FieldRule("workspace_id", HERE, _I, "requests are not attributed to users"),
    FieldRule("billing_policy", HERE, _I, "nothing is billed"),
    FieldRule("betas", HERE, _I, "what is supported needs no header"),
    FieldRule("anthropic_beta", HERE, _I, "what is supported needs no header"),
    FieldRule("anthropic_version", HERE, _I, "there is one version"),
    # Refused: ignoring it would lose the conversation.
    FieldRule("thread", HERE, _R, "no conversations are held here, send the whole one in messages"),
)


class CountRequest(BaseModel):
    """``POST /v1/messages/count_tokens``. Blocks are checked by the translation, which names the place."""

    model_config = ConfigDict(strict=True, extra="forbid")

    messages: list[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    """``POST /v1/messages``."""

    max_tokens: int

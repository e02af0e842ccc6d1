"""What a request body may hold: one table of fields and the typed shapes of the supported ones.

``FIELDS`` says of every field whether it is supported, ignored with a warning, or
refused, and why; the documentation page and a test read the same table. The other APIs have tables of their own, in
messages/fields.py, responses/fields.py and ollama/fields.py. Knows no HTTP, no tokenizer and no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwench.errors import RequestError
from qwench.media.parts import MEDIA_FIELDS
from qwench.server.lines import URLS
from qwench.text.grammar import KINDS
from qwench.text.thinking import KNOWN, concerns_thinking

Endpoint = Literal["chat", "completions", "messages", "responses", "ollama chat", "ollama generate"]
BOTH: tuple[Endpoint, ...] = ("chat", "completions")
CHAT: tuple[Endpoint, ...] = ("chat",)
COMPLETIONS: tuple[Endpoint, ...] = ("completions",)
MAX_SHOWN = 80
NAMED = "the served name or its short name; names of GPT, Claude and Gemini models are answered too, with a warning"


class Treatment(Enum):
    """What happens to a field that is present and not null."""

    SUPPORTED = "supported"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class FieldRule:
    """One row of the table. ``neutral`` values of an ignored or refused field pass without a word."""

    name: str
    endpoints: tuple[Endpoint, ...]
    treatment: Treatment
    note: str
    neutral: tuple[object, ...] = ()


_S, _I, _R = Treatment.SUPPORTED, Treatment.IGNORED, Treatment.REFUSED

FIELDS: tuple[FieldRule, ...] = (
    FieldRule("model", BOTH, _S, NAMED),
    FieldRule(
        "messages",
        CHAT,
        _S,
        "a list of messages with the roles system, developer, user, assistant, tool; content is text or parts: text, "
        "image_url, video_url, video (a list of frames), file (a PDF document)",
    ),
    FieldRule("prompt", COMPLETIONS, _S, "a string, a list of strings, token ids, or a list of lists of token ids"),
    FieldRule("stream", BOTH, _S, "server-sent events"),
    FieldRule("stream_options", BOTH, _S, "include_usage sends a last chunk with usage; needs stream"),
    FieldRule("n", BOTH, _S, "number of answers per prompt"),
    FieldRule("max_tokens", BOTH, _S, "completions default to 16, chat to the rest of the window"),
    FieldRule("max_completion_tokens", CHAT, _S, "the newer name of max_tokens"),
    FieldRule("min_tokens", BOTH, _S, "the model cannot end its answer earlier; stop strings still can"),
    FieldRule("temperature", BOTH, _S, "0 is greedy and, unless they are sent, switches the preset's penalties off"),
    FieldRule("top_p", BOTH, _S, "nucleus; above 0, at most 1"),
    FieldRule("top_k", BOTH, _S, "0 or -1 keeps every token"),
    FieldRule("min_p", BOTH, _S, "share of the likeliest token's probability"),
    FieldRule("presence_penalty", BOTH, _S, "-2 to 2"),
    FieldRule("frequency_penalty", BOTH, _S, "-2 to 2"),
    FieldRule("repetition_penalty", BOTH, _S, "1 is off"),
    FieldRule("logit_bias", BOTH, _S, "token id to a bias of -100 to 100"),
    FieldRule("seed", BOTH, _S, "choice i of n uses seed + i; the same whatever else is running"),
    FieldRule("stop", BOTH, _S, "a string, or a list of at most 32 strings"),
    FieldRule("stop_token_ids", BOTH, _S, "end the answer at these ids too"),
    FieldRule("ignore_eos", BOTH, _S, "keep going past the model's own end of answer"),
    FieldRule("include_stop_str_in_output", BOTH, _S, "keep the stop string in the text"),
    FieldRule("skip_special_tokens", BOTH, _S, "false shows special tokens in the text"),
    FieldRule("logprobs", BOTH, _S, "chat: true or false; completions: how many per token"),
    FieldRule("top_logprobs", CHAT, _S, "0 to 20; needs logprobs true"),
    FieldRule("tools", CHAT, _S, "functions with a name and, if they take any, parameters; docs/tools.md has more"),
    FieldRule(
        "tool_choice", CHAT, _S, "auto, none, required, one function, or allowed_tools with mode auto or required"
    ),
    FieldRule("functions", CHAT, _S, "tools as they were before tools; the answer has a function_call then"),
    FieldRule("function_call", CHAT, _S, "tool_choice for functions: auto, none, or an object with a name"),
    FieldRule("parallel_tool_calls", CHAT, _S, "false ends the answer after its first call"),
    FieldRule("enable_thinking", CHAT, _S, "true or false; absent means the model's default"),
    FieldRule("enableThinking", CHAT, _S, "enable_thinking"),
    FieldRule("think", CHAT, _S, "true, false, or a level of effort"),
    FieldRule("thinking", CHAT, _S, "true, false, or an object with type, budget_tokens and display"),
    FieldRule("reasoning_effort", CHAT, _S, "none, minimal, low, medium, high, xhigh or max: a thinking budget each"),
    FieldRule("reasoning", CHAT, _S, "an object with effort, max_tokens, enabled and exclude"),
    FieldRule("output_config", CHAT, _S, "an object with effort"),
    FieldRule("thinking_budget", CHAT, _S, "the most tokens of thinking; 0 switches it off"),
    FieldRule("thinking_token_budget", CHAT, _S, "thinking_budget"),
    FieldRule("thinking_budget_tokens", CHAT, _S, "thinking_budget, or -1 for no bound"),
    FieldRule("reasoning_budget", CHAT, _S, "thinking_budget, or -1 for no bound"),
    FieldRule("reasoning_budget_tokens", CHAT, _S, "thinking_budget, or -1 for no bound"),
    FieldRule("reasoning_budget_message", CHAT, _S, "what is written in the model's name when its thinking is cut"),
    FieldRule("include_reasoning", CHAT, _S, "true or false; false leaves the reasoning out of the response"),
    FieldRule("chat_template_kwargs", CHAT, _S, "enable_thinking, thinking_budget and variables of the chat template"),
    FieldRule("service_tier", BOTH, _S, "flex never displaces what is kept of other conversations; others do nothing"),
    FieldRule(
        "reasoning_strategy", CHAT, _S, "an object with method vote, best_of or forest, samples, budget, check and more"
    ),
    FieldRule("min_pixels", CHAT, _S, "each picture or frame is brought to at least so many pixels"),
    FieldRule("max_pixels", CHAT, _S, "each picture or frame is brought to at most so many pixels"),
    FieldRule("fps", CHAT, _S, "frames of a video that are looked at in a second"),
    FieldRule("max_frames", CHAT, _S, "the most frames of a video that are looked at"),
    FieldRule("max_pages", CHAT, _S, "the most pages of a document that are looked at"),
    FieldRule("mm_processor_kwargs", CHAT, _S, "an object with the five before"),
    FieldRule("media_io_kwargs", CHAT, _S, "an object with video, which holds num_frames and fps"),
    FieldRule(
        "echo",
        COMPLETIONS,
        _S,
        "the prompt before the answer, with its log-probabilities when asked for; with max_tokens 0 nothing but it",
    ),
    FieldRule("suffix", COMPLETIONS, _S, "what comes behind the answer: it fills the middle, and never thinks"),
    FieldRule("best_of", COMPLETIONS, _S, "so many are drawn, and the n likeliest per token are told; not with stream"),
    FieldRule(
        "response_format", BOTH, _S, "an object with type text, json_object, json_schema, regex (pattern) or grammar"
    ),
    FieldRule("guided_json", BOTH, _S, "a JSON schema that the answer has to fit"),
    FieldRule("guided_regex", BOTH, _S, "a regular expression that the whole answer has to match"),
    FieldRule("guided_choice", BOTH, _S, "a list of texts, one of which is the answer"),
    FieldRule("guided_grammar", BOTH, _S, "a grammar in Lark's form"),
    FieldRule("structured_outputs", BOTH, _S, "an object with json, regex, choice, grammar or json_object"),
    FieldRule("grammar", BOTH, _S, "guided_grammar"),
    # Accepted without effect: nothing in the answer's text depends on them.
    FieldRule("store", BOTH, _I, "nothing is stored", (False,)),
    FieldRule("metadata", BOTH, _I, "nothing is stored"),
    FieldRule("user", BOTH, _I, "requests are not attributed to users"),
    FieldRule("safety_identifier", BOTH, _I, "requests are not attributed to users"),
    FieldRule("verbosity", CHAT, _I, "ask for it in the prompt"),
    FieldRule("prediction", CHAT, _I, "predicted outputs only save time elsewhere"),
    FieldRule("moderation", CHAT, _I, "nothing is moderated"),
    FieldRule("prompt_cache_key", BOTH, _I, "there is one cache"),
    FieldRule("prompt_cache_options", BOTH, _I, "there is one cache"),
    FieldRule("prompt_cache_retention", BOTH, _I, "there is one cache"),
    FieldRule("cache_prompt", BOTH, _I, "reuse is not chosen per request"),
    FieldRule("priority", BOTH, _I, "requests are served in order", (0,)),
    FieldRule("keep_alive", BOTH, _I, "the model stays loaded"),
    FieldRule("reasoning_control", CHAT, _I, "every running response can be told to stop thinking", (True,)),
    # Refused: ignoring them would change what the caller gets.
    FieldRule("audio", CHAT, _R, "the models have no audio output"),
    FieldRule("modalities", CHAT, _R, "the models answer in text", (["text"],)),
    FieldRule("web_search_options", CHAT, _R, "there is no web search"),
    FieldRule("repeat_penalty", BOTH, _R, "send repetition_penalty instead", (1,)),
    FieldRule("continue_final_message", CHAT, _R, "continuing a message is not there yet", (False,)),
    FieldRule("add_generation_prompt", CHAT, _R, "an answer always starts a new assistant turn", (True,)),
    FieldRule("prompt_logprobs", BOTH, _R, "use echo with logprobs on /v1/completions"),
    FieldRule("use_beam_search", BOTH, _R, "there is no beam search", (False,)),
)


class StreamOptions(BaseModel):
    """``stream_options``; unknown options pass, as clients add theirs."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class _Shared(BaseModel):
    """What both request types hold. Ranges are checked where they matter, in SamplingParams."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    service_tier: str | None = None
    response_format: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: dict[str, Any] | None = None
    grammar: str | None = None

    @property
    def structure_fields(self) -> dict[str, Any]:
        """The fields that text/grammar reads, as they were sent."""
        names = ("response_format", "structured_outputs", *KINDS)
        return {name: getattr(self, name) for name in names}


class ChatRequest(_Shared):
    """``POST /v1/chat/completions``. Messages and thinking are checked by the text layer, which names the place."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    enableThinking: bool | None = None  # noqa: N815 - as some clients spell it
    think: bool | str | None = None
    thinking: bool | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    thinking_budget: int | None = None
    thinking_token_budget: int | None = None
    thinking_budget_tokens: int | None = None
    reasoning_budget: int | None = None
    reasoning_budget_tokens: int | None = None
    reasoning_budget_message: str | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_strategy: dict[str, Any] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    max_pages: int | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None

    @property
    def media_fields(self) -> dict[str, Any]:
        """The fields that media/parts reads, as they were sent."""
        return {name: getattr(self, name) for name in MEDIA_FIELDS}

    @property
    def thinking_fields(self) -> dict[str, Any]:
        """The fields that text/thinking reads, as they were sent."""
        return {name: getattr(self, name) for name in sorted({known.partition(".")[0] for known in KNOWN})}


class CompletionRequest(_Shared):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class ControlRequest(BaseModel):
    """``POST /v1/chat/completions/control``: ``id`` is that of a running response."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str = Field(description="the id of a running response")
    action: Literal["reasoning_end"] = Field(description="what it shall do: stop thinking, and answer")


class TokenizeRequest(BaseModel):
    """``POST /tokenize``: ``prompt`` (or ``content``) as text, or ``messages`` through the chat template."""

    model_config = ConfigDict(strict=True, extra="ignore")

    prompt: str | None = Field(None, description="a text")
    content: str | None = Field(None, description="prompt, as llama.cpp calls it")
    messages: list[dict[str, Any]] | None = Field(None, description="a conversation, instead of a text")
    tools: list[dict[str, Any]] | None = Field(None, description="the tools it offers")
    enable_thinking: bool | None = Field(None, description="as in chat")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="as in chat")
    parse_special: bool = Field(True, description="false: what looks like a special token in a text stays text")
    return_token_strs: bool = Field(False, description="true: each token's text too")


class DetokenizeRequest(BaseModel):
    """``POST /detokenize``."""

    model_config = ConfigDict(strict=True, extra="ignore")

    tokens: list[int] = Field(description="token ids")


class TemplateRequest(BaseModel):
    """``POST /apply-template``."""

    model_config = ConfigDict(strict=True, extra="ignore")

    messages: list[dict[str, Any]] = Field(description="a conversation")
    tools: list[dict[str, Any]] | None = Field(None, description="the tools it offers")
    enable_thinking: bool | None = Field(None, description="as in chat")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="as in chat")


class Expiry(BaseModel):
    """``expires_after`` of a file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    anchor: Literal["created_at"] = Field(description="from when on")
    seconds: int = Field(ge=3600, le=30 * 86_400, description="how long it is kept, an hour to thirty days")


class FileUpload(BaseModel):
    """``POST /v1/files``, a form."""

    model_config = ConfigDict(strict=True, extra="ignore")

    file: str = Field("", description="one request a line, at most 200 MiB", json_schema_extra={"format": "binary"})
    purpose: Literal["batch"] = Field(description="what it is for")
    expires_after: Expiry | None = Field(None, description="an object with anchor and seconds; absent: until deleted")


class BatchRequest(BaseModel):
    """``POST /v1/batches``."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: str = Field(description="an uploaded file of requests")
    endpoint: str = Field(description=f"the address that all of them go to: {', '.join(URLS)}")
    completion_window: Literal["24h"] = Field(description="OpenAI's only value; a batch is worked on until it is done")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="texts by name, that come with the batch")
    output_expires_after: Expiry | None = Field(None, description="expires_after of the files of results")


Shape = TypeVar("Shape", bound=BaseModel)


def listing(*more: str) -> dict[str, object]:
    """The OpenAPI entry of a route that lists: which part of the list is wanted."""
    known = {
        "limit": "how many",
        "after": "the id behind which the page begins",
        "order": "desc, the newest first, or asc",
        "purpose": "of files: of this one only",
    }
    asked = ("limit", "after", "order", *more)
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": known[name], "schema": {"type": "string"}}
            for name in asked
        ]
    }


def rules(endpoint: Endpoint, table: Sequence[FieldRule] = FIELDS) -> dict[str, FieldRule]:
    """The rows of ``table`` that concern one endpoint, by field name."""
    return {rule.name: rule for rule in table if endpoint in rule.endpoints}


def sift(
    body: Mapping[str, object], endpoint: Endpoint, table: Sequence[FieldRule] = FIELDS
) -> tuple[dict[str, object], list[str]]:
    """The supported fields of ``body`` and one warning per ignored field; a refused field raises RequestError.

    Null means absent, as in OpenAI's API. Fields nobody knows are ignored by name, because clients add their own.
    """
    known = rules(endpoint, table)
    kept: dict[str, object] = {}
    warnings: list[str] = []
    for name, value in body.items():
        rule = known.get(name)
        if value is None:
            continue
        if rule is None:
            hint = ", thinking is steered by enable_thinking and thinking_budget" if concerns_thinking(name) else ""
            warnings.append(f"{show(name)}: unknown field, ignored{hint if endpoint == 'chat' else ''}")
        elif rule.treatment is Treatment.SUPPORTED:
            kept[name] = value
        elif _is_neutral(value, rule):
            continue
        elif rule.treatment is Treatment.IGNORED:
            warnings.append(f"{name}: ignored, {rule.note}")
        else:
            raise RequestError(f"{name} is not supported: {rule.note}.", param=name)
    return kept, warnings


def _is_neutral(value: object, rule: FieldRule) -> bool:
    return any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in rule.neutral)


def shape(kind: type[Shape], fields: Mapping[str, object], table: Sequence[FieldRule] = FIELDS) -> Shape:
    """``fields`` as a ``kind``; RequestError names the first field that does not fit, and what ``table`` says of it."""
    try:
        return kind.model_validate(fields)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        first, name = errors[0], str(errors[0]["loc"][0])
        note = next((rule.note for rule in table if rule.name == name), "it")
        if first["type"] == "missing":
            raise RequestError(f"{name} is missing; send {note}.", param=name) from None
        if len({error["loc"][:2] for error in errors if error["loc"][0] == name}) > 1:  # members of a union
            raise RequestError(f"{name} is {show(fields[name])}; give {note}.", param=name) from None
        where = name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][1:])
        reason = first["msg"].removeprefix("Input should be ").rstrip(".")
        raise RequestError(f"{where} is {show(first['input'])}; it should be {reason}.", param=where) from None


def show(value: object) -> str:
    """A value as it may stand in a message: short and printable."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."

"""What the bodies of Ollama's routes may hold: a table of fields, and the types of the supported ones.

The fields of ``options`` stand in the table with their own rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qwench.server.schemas import NAMED, Endpoint, FieldRule, Treatment, sift

CHAT: tuple[Endpoint, ...] = ("ollama chat",)
GENERATE: tuple[Endpoint, ...] = ("ollama generate",)
BOTH: tuple[Endpoint, ...] = (*CHAT, *GENERATE)
OPTIONS = "options."
_S, _I, _R = Treatment.SUPPORTED, Treatment.IGNORED, Treatment.REFUSED
_STARTED = "chosen when the server starts"


def _option(name: str, treatment: Treatment, note: str, neutral: tuple[object, ...] = ()) -> FieldRule:
    return FieldRule(f"{OPTIONS}{name}", BOTH, treatment, note, neutral)


FIELDS: tuple[FieldRule, ...] = (
    FieldRule("model", BOTH, _S, f"{NAMED}, so are Llama, Gemma and other families of Ollama's; :latest may follow"),
    FieldRule(
        "messages",
        CHAT,
        _S,
        "a list of messages with role, content, images, thinking, tool_calls, tool_name; an empty one asks whether "
        "the model is loaded",
    ),
    FieldRule("prompt", GENERATE, _S, "a text; without one the answer says whether the model is loaded"),
    FieldRule("suffix", GENERATE, _S, "what comes behind the answer: it fills the middle, and never thinks"),
    FieldRule("system", GENERATE, _S, "a system message in front; not with raw and suffix"),
    FieldRule("images", GENERATE, _S, "a list of pictures in base64; not with raw and suffix"),
    FieldRule("raw", GENERATE, _S, "true: the prompt is what the model reads, without a template"),
    FieldRule("tools", CHAT, _S, "functions with a name and, if they take any, parameters"),
    FieldRule("stream", BOTH, _S, "false for one object; else a line of JSON for every piece"),
    FieldRule("format", BOTH, _S, "json, or a JSON schema that the answer has to fit"),
    FieldRule("think", BOTH, _S, "true, false, or a level of effort: low, medium, high"),
    FieldRule("options", BOTH, _S, "an object; the rows below"),
    FieldRule("logprobs", BOTH, _S, "true: the log-probability of every token of content"),
    FieldRule("top_logprobs", BOTH, _S, "0 to 20; needs logprobs true"),
    FieldRule("keep_alive", BOTH, _I, "the model stays loaded"),
    FieldRule("truncate", BOTH, _I, "a prompt beyond the window is refused, never cut", (False,)),
    FieldRule("shift", BOTH, _I, "an answer ends where the window does", (False,)),
    FieldRule("template", GENERATE, _R, "the model's own is used, or send raw", ("",)),
    FieldRule("context", GENERATE, _R, "send the conversation to /api/chat", ([],)),
    FieldRule("_debug_render_only", BOTH, _R, "send messages to /apply-template", (False,)),
    *(FieldRule(name, GENERATE, _R, "the models answer in text") for name in ("width", "height", "steps")),
    _option("num_ctx", _S, "the whole window is there in any case; a wish beyond it is told in a warning"),
    _option("num_predict", _S, "the most tokens of the answer; -1 and -2 for as many as the window holds"),
    _option("temperature", _S, "0 is greedy"),
    _option("top_k", _S, "0 keeps every token"),
    _option("top_p", _S, "nucleus; above 0, at most 1"),
    _option("min_p", _S, "share of the likeliest token's probability"),
    _option("seed", _S, "the same whatever else is running"),
    _option("stop", _S, "a text, or a list of at most 32 texts"),
    _option("presence_penalty", _S, "-2 to 2"),
    _option("frequency_penalty", _S, "-2 to 2"),
    _option("repeat_penalty", _S, "1 is off; it looks at the whole prompt and answer"),
    _option("repeat_last_n", _I, "repeat_penalty looks at everything", (-1,)),
    _option("num_keep", _I, "nothing is cut"),
    _option("penalize_newline", _I, "a line break is a token like others", (True,)),
    _option("mirostat", _R, "send temperature and top_p instead", (0,)),
    _option("mirostat_tau", _I, "there is no mirostat"),
    _option("mirostat_eta", _I, "there is no mirostat"),
    _option("typical_p", _R, "send top_p or min_p instead", (1, 0)),
    _option("tfs_z", _R, "send top_p or min_p instead", (1,)),
    *(_option(name, _I, _STARTED) for name in ("num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram")),
    *(_option(name, _I, _STARTED) for name in ("f16_kv", "use_mmap", "use_mlock", "vocab_only", "embedding_only")),
    _option("logits_all", _I, "send logprobs"),
)


class Options(BaseModel):
    """``options``, the supported ones. Ranges are checked where they matter, in SamplingParams."""

    model_config = ConfigDict(strict=True, extra="forbid")

    num_ctx: int | None = None
    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None


class _Shared(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    stream: bool = True
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    options: Options = Options()
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaChatRequest(_Shared):
    """``POST /api/chat``."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


class OllamaGenerateRequest(_Shared):
    """``POST /api/generate``."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None


class ShowRequest(BaseModel):
    """``POST /api/show``."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = Field(None, description="the served name")
    name: str | None = Field(None, description="model, as it was called before")
    verbose: bool | None = Field(None, description="no effect: everything is told")


def sift_options(body: Mapping[str, object], endpoint: Endpoint) -> tuple[dict[str, object], list[str]]:
    """As ``sift``, with every option by itself."""
    given = body.get("options")
    flat = {name: value for name, value in body.items() if name != "options" or not isinstance(given, dict)}
    if isinstance(given, dict):
        flat |= {f"{OPTIONS}{name}": value for name, value in given.items()}
    kept, warnings = sift(flat, endpoint, FIELDS)
    options = {name.removeprefix(OPTIONS): kept.pop(name) for name in tuple(kept) if name.startswith(OPTIONS)}
    return kept | ({"options": options} if options else {}), warnings

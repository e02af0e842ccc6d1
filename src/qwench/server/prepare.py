"""From a request body to what the engine is asked: prompt ids, sampling, and how the answer is to be read.

Used by the server and by the offline batch. Knows no HTTP and no engine; the text layer renders and tokenises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qwench.engine.request import Guide, MediaSpan, SamplingParams
from qwench.engine.thinking import ThinkingRules
from qwench.errors import RequestError
from qwench.media.parts import read_caps
from qwench.reason.recipes import Task
from qwench.reason.samples import Render
from qwench.reason.strategy import read_strategy
from qwench.server.naming import UNNAMED, Names
from qwench.server.schemas import ChatRequest, CompletionRequest, shape, show, sift
from qwench.text.chat import normalise_messages
from qwench.text.grammar import read_structure
from qwench.text.infill import infill, infilling
from qwench.text.marks import Layout, layout, with_orders
from qwench.text.model import ChatPrompt, ModelText
from qwench.text.noise import is_errand
from qwench.text.thinking import ThinkingPlan, read_thinking
from qwench.text.tools import Tools, read_tools
from qwench.text.vision import Eyes

MAX_STOP_STRINGS = 32
MAX_STOP_CHARACTERS = 1000  # of each: the end of an answer is compared with all of it at every token
MAX_TOP_LOGPROBS = 20
MAX_ANSWERS = 128  # prompts times n in one request
BACKGROUND_TIER = "flex"  # OpenAI's word for work that nobody waits for
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
SAMPLING_FIELDS = (
    "n",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
)


@dataclass(frozen=True)
class Prompt:
    """One prompt: its ids, where its messages begin, its text when the request wants it echoed, and what it shows."""

    token_ids: tuple[int, ...]
    layout: Layout
    echo: str | None = None
    media: tuple[MediaSpan, ...] = ()


@dataclass(frozen=True)
class Considering:
    """A reasoning_strategy as it is asked for; which checks there are is for the server to say."""

    task: Task
    check: object


@dataclass(frozen=True)
class Prepared:
    """A request that is understood. ``sampling.n`` answers are wanted for each prompt.

    ``thinking_open``: the prompt ends inside a thinking block. ``split_thinking``: reasoning is told apart
    from content, and sent along if ``show_reasoning``. ``rules``: what the engine holds the answer to; ``thinking``:
    what was understood, told in the response. ``background``: nobody goes on from it, so it displaces nothing that is
    kept of others. ``warnings``: one per ignored field, for the warning header. ``considering``: the answer is to be
    chosen from many samples. ``tools`` may be called, and ``guide`` is what each answer may say. ``legacy_calls``:
    a call is told as a function_call. Of raw completions: the ``best`` so many answers to each prompt are told, or all;
    ``show_logprobs``: with what was asked for, not only ranked by; ``silent``: only the prompt is told.
    ``place``: the field that the prompt was made of.
    """

    prompts: tuple[Prompt, ...]
    sampling: SamplingParams
    thinking_open: bool = False
    split_thinking: bool = False
    stream: bool = False
    include_usage: bool = False
    rules: ThinkingRules | None = None
    thinking: Mapping[str, object] | None = None
    show_reasoning: bool = True
    background: bool = False
    warnings: tuple[str, ...] = ()
    considering: Considering | None = None
    tools: Tools | None = None
    guide: Guide | None = None
    legacy_calls: bool = False
    best: int | None = None
    show_logprobs: bool = True
    silent: bool = False
    place: str = "messages"


def prepare_chat(
    body: Mapping[str, object], text: ModelText, names: Names = UNNAMED, eyes: Eyes | None = None
) -> Prepared:
    """A ``/v1/chat/completions`` body; ``names`` are those of the served model, ``eyes`` how it looks at what it is
    shown.

    Raises RequestError, TemplateError or ModelNotFound.
    """
    fields, warnings = sift(body, "chat")
    request = shape(ChatRequest, fields)
    warnings += names.meant(request.model)
    return prepare_request(request, warnings, text, eyes)


def prepare_request(
    request: ChatRequest, warnings: Sequence[str], text: ModelText, eyes: Eyes | None = None
) -> Prepared:
    """A conversation, whichever API it came through. Raises RequestError or TemplateError."""
    plan = read_thinking(request.thinking_fields)
    tools = _tools(request)
    grammar = read_structure(request.structure_fields)
    plain = partial(
        text.chat_prompt,
        tools=tools.offered if tools else None,
        thinking=plan,
        variables=request.chat_template_kwargs,
    )
    messages = request.messages if eyes is None else eyes.look(request.messages, read_caps(request.media_fields))

    def render(messages: object) -> ChatPrompt:
        return text.guided(plain(messages), tools, grammar)

    prompt = render(messages)
    found, unkept = with_orders(
        layout(prompt.token_ids, text.tokenizer),
        prompt.token_ids,
        messages,
        lambda messages: plain(messages, add_generation_prompt=False).token_ids,
    )
    own = {
        "max_tokens": _max_tokens(request),
        "logprobs": _chat_logprobs(request),
    }
    sampling = text.sampling(prompt.thinks, _asked(request, own))
    _check_ends(sampling, prompt.guide)
    return Prepared(
        prompts=(Prompt(tuple(prompt.token_ids), found, media=prompt.media),),
        sampling=sampling,
        thinking_open=prompt.thinking_open,
        split_thinking=True,
        stream=bool(request.stream),
        include_usage=_include_usage(request),
        rules=prompt.rules,
        thinking=_echo(plan, prompt),
        show_reasoning=plan.show,
        background=request.service_tier == BACKGROUND_TIER or is_errand(request.messages),
        warnings=(*warnings, *plan.warnings, *prompt.warnings, *unkept, *_crowded(plan, own["max_tokens"])),
        considering=_considering(request, messages, render, sampling),
        tools=tools,
        guide=prompt.guide,
        legacy_calls=request.functions is not None,
    )


def prepare_completion(
    body: Mapping[str, object], text: ModelText, names: Names = UNNAMED, _eyes: Eyes | None = None
) -> Prepared:
    """A ``/v1/completions`` body: raw text or ids, no template, neutral sampling. Raises as ``prepare_chat``."""
    fields, warnings = sift(body, "completions")
    request = shape(CompletionRequest, fields)
    warnings += names.meant(request.model)
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(f"logprobs is {request.logprobs}; give 0 to {MAX_TOP_LOGPROBS}.", param="logprobs")
    number = 1 if request.n is None else request.n
    most = COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    best = _best_of(request, number)
    silent = bool(request.echo) and most == 0  # how evaluations ask for the log-probabilities of a text
    own = {
        "n": best or number,
        "max_tokens": 1 if silent else most,
        "logprobs": 0 if best and request.logprobs is None else request.logprobs,  # to rank by
        "prompt_logprobs": request.logprobs if request.echo else None,
    }
    sampling = SamplingParams(**_asked(request, own))
    if request.suffix:
        sampling = infilling(sampling, text.tokenizer)
    grammar = read_structure(request.structure_fields)
    guide = text.grammars.guide(grammar, ThinkingRules()) if grammar else None
    _check_ends(sampling, guide)
    items = _prompt_items(request.prompt)
    if (count := len(items) * sampling.n) > MAX_ANSWERS:
        raise RequestError(f"prompt and n ask for {count} answers; ask for at most {MAX_ANSWERS}.", param="prompt")
    prompts = tuple(_completion_prompt(item, text, request) for item in items)
    return Prepared(
        prompts=prompts,
        sampling=sampling,
        stream=bool(request.stream),
        include_usage=_include_usage(request),
        background=request.service_tier == BACKGROUND_TIER,
        warnings=tuple(warnings),
        guide=guide,
        best=number if best else None,
        show_logprobs=request.logprobs is not None,
        silent=silent,
        place="prompt",
    )


def _tools(request: ChatRequest) -> Tools | None:
    """What may be called, also in the words of the API before tools."""
    if request.functions is None:
        return read_tools(request.tools, request.tool_choice, parallel=request.parallel_tool_calls)
    if request.tools is not None:
        raise RequestError("functions and tools say the same; send tools.", param="functions")
    choice = request.function_call
    named = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
    return read_tools([{"type": "function", "function": each} for each in request.functions], named, parallel=False)


def _check_ends(sampling: SamplingParams, guide: Guide | None) -> None:
    """A grammar says itself where an answer may end."""
    if guide is None or guide.mask is None:
        return
    for name, given in (("min_tokens", sampling.min_tokens), ("ignore_eos", sampling.ignore_eos)):
        if given:
            reason = "a grammar says itself where the answer ends"
            raise RequestError(
                f"{name} cannot be combined with structured output ({reason}); leave it out.", param=name
            )


def _crowded(plan: ThinkingPlan, max_tokens: int | None) -> list[str]:
    """A warning where the budget alone would fill the whole answer."""
    if max_tokens is None or plan.budget is None or plan.budget < max_tokens:
        return []
    reason = f"max_tokens is {max_tokens}, so thinking ends earlier and leaves a share for the answer"
    return [f"{plan.sources[0]}: {reason}"]


def _echo(plan: ThinkingPlan, prompt: ChatPrompt) -> dict[str, object]:
    """What the request comes to, for the response; ``from`` are the fields that said so."""
    bounded = prompt.thinks and prompt.rules.budget is not None
    return {
        "enabled": prompt.thinks,
        "budget": prompt.rules.budget if bounded else None,
        "closing_allowance": prompt.rules.allowance if bounded else None,
        "from": list(plan.sources),
    }


def _considering(
    request: ChatRequest, messages: object, render: Render, sampling: SamplingParams
) -> Considering | None:
    """The reasoning_strategy, if there is one and nothing contradicts it."""
    if request.reasoning_strategy is None:
        return None
    strategy, check = read_strategy(request.reasoning_strategy)
    for name, given in (("n", sampling.n > 1), ("logprobs", request.logprobs), ("tools", request.tools)):
        if given:
            reason = (
                "one answer is chosen from many, and they tell of single ones"
                if name != "tools"
                else "a call is no vote"
            )
            raise RequestError(
                f"{name} cannot be combined with reasoning_strategy ({reason}); leave it out.", param=name
            )
    return Considering(Task(normalise_messages(messages), render, sampling, strategy), check)


def _max_tokens(request: ChatRequest) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(f"max_tokens is {old} and max_completion_tokens is {new}; send one.", param="max_tokens")
    return old if new is None else new


def _chat_logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise RequestError(f"top_logprobs is {top}; give 0 to {MAX_TOP_LOGPROBS}.", param="top_logprobs")
    if top is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true; send both.", param="top_logprobs")
    return (top or 0) if request.logprobs else None


def _include_usage(request: ChatRequest | CompletionRequest) -> bool:
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options needs stream: true; send both.", param="stream_options")
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def _asked(request: ChatRequest | CompletionRequest, own: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields that were sent; ``own`` are those the two request types spell differently."""
    sent = {name: getattr(request, name) for name in SAMPLING_FIELDS if getattr(request, name) is not None}
    stop = sent.get("stop")
    if isinstance(stop, list) and len(stop) > MAX_STOP_STRINGS:
        raise RequestError(f"stop holds {len(stop)} strings; send at most {MAX_STOP_STRINGS}.", param="stop")
    longest = max(map(len, [stop] if isinstance(stop, str) else stop or ()), default=0)
    if longest > MAX_STOP_CHARACTERS:
        told = f"stop holds a string of {longest} characters; send at most {MAX_STOP_CHARACTERS} in each"
        raise RequestError(f"{told}.", param="stop")
    if request.logit_bias:
        sent["logit_bias"] = _logit_bias(request.logit_bias)
    return sent | {name: value for name, value in own.items() if value is not None}


def _logit_bias(bias: Mapping[str, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise RequestError(f"logit_bias has the key {show(key)}; keys are token ids.", param="logit_bias")
        found[int(key)] = float(value)
    return found


def _prompt_items(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The four shapes of ``prompt`` as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids:
        return [ids]
    items = [item for item in prompt if not isinstance(item, int)]
    if not items:
        raise RequestError("prompt is an empty list; send at least one prompt.", param="prompt")
    return items


def _best_of(request: CompletionRequest, number: int) -> int | None:
    """How many answers are drawn, where that is more than are told."""
    drawn = number if request.best_of is None else request.best_of
    if not number <= drawn <= MAX_ANSWERS:
        told = f"best_of is {drawn}; give a whole number from n ({number}) to {MAX_ANSWERS}."
        raise RequestError(told, param="best_of")
    if drawn > number and request.stream:
        reason = "the best is known when all are there"
        raise RequestError(f"best_of cannot be combined with stream ({reason}); leave one out.", param="best_of")
    return drawn if drawn > number else None


def _completion_prompt(item: str | list[int], text: ModelText, request: CompletionRequest) -> Prompt:
    echo = bool(request.echo)
    ids = tuple(text.tokenizer.encode(item) if isinstance(item, str) else item)
    if request.suffix:
        if echo:
            reason = "what lies between is not written behind the prompt"
            raise RequestError(f"echo cannot be combined with suffix ({reason}); leave one out.", param="echo")
        ids = infill(item, request.suffix, text.tokenizer)
    if not ids:
        raise RequestError("prompt is empty; send some text or at least one token id.", param="prompt")
    found = layout(ids, text.tokenizer)
    if not echo:
        return Prompt(ids, found)
    return Prompt(ids, found, item if isinstance(item, str) else text.tokenizer.decode(ids, skip_special_tokens=False))

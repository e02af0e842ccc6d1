"""LLM: the offline face, with vLLM's names. Prompts in, complete answers out, through the same engine as the server.

Text on both sides; the engine sees ids. Differences from vLLM, on purpose: ``token_ids`` ends before the end token,
``max_tokens`` None means "until the model is done", and without SamplingParams the model's recommended ones are used.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient, Generation
from qwench.engine.request import Guide, MediaSpan, SamplingParams, TokenLogprob
from qwench.engine.thinking import ThinkingRules
from qwench.errors import RequestError, UsageError
from qwench.media.fetch import Sources
from qwench.media.parts import read_caps
from qwench.media.reader import MediaReader
from qwench.progress import Progress
from qwench.reason import told
from qwench.reason.checks import read_check
from qwench.reason.recipes import Task, question, reason
from qwench.reason.strategy import read_strategy
from qwench.text.chat import normalise_messages, prompt_opens_thinking
from qwench.text.grammar import read_structure
from qwench.text.marks import layout
from qwench.text.model import ChatPrompt, ModelText
from qwench.text.reading import Reading, ToolCall
from qwench.text.thinking import ThinkingPlan, read_thinking
from qwench.text.tokenizer import Tokenizer
from qwench.text.tools import Tools, read_tools
from qwench.text.vision import Eyes, expand, placeholders

Prompt = str | Mapping[str, Any]
Result = TypeVar("Result")

logger = logging.getLogger(__name__)
MAX_IN_FLIGHT = 256  # sequences handed to the engine at once; it has a queue of its own
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
DTYPE_NAMES = {"half": "float16", "float": "float32"}
MEDIA_OPTIONS = ("mm_processor_kwargs", "allow_media_url")
OPTIONS = (
    *MEDIA_OPTIONS,
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "max_step_tokens",
    "page_size",
    "kv_cache_dtype",
    "offline",
    "prefix_cache",
    "cache_dir",
    "cache_dir_size",
    "trust_remote_code",
)


@dataclass(frozen=True)
class Logprob:
    """A token's raw log-probability; ``rank`` 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class CompletionOutput:
    """One answer. Of ``chat``, ``text`` is the answer proper and ``reasoning_content`` the thinking before it.

    ``thinking_closed_by`` tells who ended that: the model, or its budget (docs/thinking.md has all). A token that was
    written and not drawn has no entries in ``logprobs``. ``tool_calls`` are those of a chat with tools.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning_content: str | None = None
    reasoning_tokens: int = 0
    thinking_closed_by: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """A prompt with its ``n`` answers. ``prompt_logprobs`` has one entry per prompt token; the first is None."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = True
    num_cached_tokens: int = 0


@dataclass(frozen=True)
class ReasonedOutput:
    """The answer many samples came to. ``report`` tells votes, samples, checks and tokens (docs/reasoning.md)."""

    text: str
    reasoning_content: str | None
    token_ids: list[int]
    finish_reason: str
    report: dict[str, Any]


@dataclass(frozen=True)
class _Job:
    """One prompt to be answered."""

    id: int
    prompt: str | None
    token_ids: list[int]
    sampling: SamplingParams
    thinking_open: bool = False
    rules: ThinkingRules | None = None  # of a chat, whose reasoning is told apart
    tools: Tools | None = None
    media: tuple[MediaSpan, ...] = ()
    guide: Guide | None = None


class LLM:
    """A model in this process. ``memory`` (for cached keys, values and states) takes bytes or text such as "2GiB".

    Further options: tensor_parallel_size, gpu_memory_utilization, max_step_tokens, page_size, kv_cache_dtype
    ("int8": keys and values in 8 bits), offline, prefix_cache, cache_dir, cache_dir_size; mm_processor_kwargs (bounds
    of what is looked at: min_pixels, max_pixels, fps, max_frames, max_pages), allow_media_url; and trust_remote_code,
    which may only be False. Raises QwenchError with one sentence if the model cannot be run. Use it as a context
    manager, or call ``close``.
    """

    def __init__(
        self,
        model: str = "nano",
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        memory: int | str | None = None,
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        _check_options(options)
        dtype = str(dtype).removeprefix("torch.")
        config = EngineConfig(
            model=str(model),
            device=str(device),
            dtype=DTYPE_NAMES.get(dtype, dtype),
            quantization=quantization,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            memory=read_size(memory) if isinstance(memory, str) else memory,
            seed=seed or 0,
            **{name: value for name, value in options.items() if name not in (*MEDIA_OPTIONS, "trust_remote_code")},
        )
        self._caps = read_caps({"mm_processor_kwargs": options.get("mm_processor_kwargs")})
        self._sources = Sources(web=bool(options.get("allow_media_url")), files=True)
        self._ids = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.client = EngineClient(config)
        self.text = ModelText(self.client.files, self.client.model)
        self.client.start(self.text.vocabulary)
        wait_loaded(self.client)
        for line in self.client.banner():
            logger.info(line)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]:
        """Continue each prompt: text, {"prompt": text} or {"prompt_token_ids": ids}; outputs in the same order.

        With "multi_modal_data": {"image": [...], "video": [...]} there is one placeholder in the prompt for each.
        ``sampling_params``: one for all, one per prompt, or None for the recommended ones. Raises RequestError naming
        the prompt before anything runs.
        """
        items = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        read = [_read_prompt(item, self.text.tokenizer, _place(at, items)) for at, item in enumerate(items)]
        thinking = [text is not None and prompt_opens_thinking(text) for text, _ in read]
        sampling = self._sampling(sampling_params, thinking)
        jobs = []
        for at, ((text, ids), params) in enumerate(zip(read, sampling, strict=True)):
            whole, media = self._attach(items[at], ids, _place(at, items))
            jobs.append(_Job(next(self._ids), text, whole, params, media=media, guide=self._guide(params)))
        return self._answer(jobs, show=bool(use_tqdm))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several. ``enable_thinking`` None leaves it to the model's template;
        ``thinking_budget`` bounds the thinking in tokens (0: none) and leaves room for the answer. ``tools`` are
        functions in OpenAI's form; calls of them are in the outputs' ``tool_calls``."""
        offer = read_tools(tools)
        plan = _thinking(enable_thinking, thinking_budget, chat_template_kwargs)
        prompts = [
            self.text.chat_prompt(
                conversation,
                tools=offer.offered if offer else None,
                thinking=plan,
                add_generation_prompt=add_generation_prompt,
                variables=chat_template_kwargs,
            )
            for conversation in map(self._look, _conversations(messages))
        ]
        sampling = self._sampling(sampling_params, [prompt.thinks for prompt in prompts])
        prompts = [
            self.text.guided(prompt, offer, read_structure({"structured_outputs": params.structured_outputs}))
            for prompt, params in zip(prompts, sampling, strict=True)
        ]
        jobs = [
            _Job(next(self._ids), at.text, at.token_ids, params, at.thinking_open, at.rules, offer, at.media, at.guide)
            for at, params in zip(prompts, sampling, strict=True)
        ]
        for warning in {*plan.warnings, *(warning for prompt in prompts for warning in prompt.warnings)}:
            logger.warning(warning)
        return self._answer(jobs, show=bool(use_tqdm))

    def reason(
        self,
        messages: Sequence[Mapping[str, Any]],
        strategy: str | Mapping[str, Any] = "vote",
        *,
        budget: int | None = None,
        check: object = None,
        sampling_params: SamplingParams | None = None,
        enable_thinking: bool | None = None,
        thinking_budget: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> ReasonedOutput:
        """Answer a conversation with many samples: "vote", "best_of" or "forest", or a mapping with their settings.

        ``budget`` bounds the tokens of all samples together; the log says beforehand what they can come to. A check is
        {"schema": ...}, {"regex": ...}, "arithmetic" or {"command": [...]}; docs/reasoning.md has all.
        Raises RequestError naming what is wrong before anything runs.
        """
        given = {"method": strategy} if isinstance(strategy, str) else dict(strategy)
        given |= {name: value for name, value in (("budget", budget), ("check", check)) if value is not None}
        plan, wanted = read_strategy(given, "strategy")
        turns = normalise_messages(self._look(messages))

        thinking = _thinking(enable_thinking, thinking_budget, chat_template_kwargs)
        plain = partial(self.text.chat_prompt, thinking=thinking, variables=chat_template_kwargs)
        sampling = sampling_params or self.text.sampling_defaults(plain(turns).thinks)
        grammar = read_structure({"structured_outputs": sampling.structured_outputs})

        def render(turns: object) -> ChatPrompt:
            return self.text.guided(plain(turns), None, grammar)

        checker = None if wanted is None else read_check(wanted, question(turns))
        task = Task(turns, render, sampling, plan, checker)
        limit = task.limit(self.client)
        logger.info(told.before(plan, limit))
        outcome = self._wait_for(reason(self.client, self.text.tokenizer, task, limit))
        sample = outcome.sample
        return ReasonedOutput(
            sample.content, sample.reasoning or None, sample.token_ids, outcome.finish_reason, outcome.report
        )

    def get_tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def close(self) -> None:
        """Stop the engine and free its memory. Safe to call again."""
        client = getattr(self, "client", None)  # a constructor that raised has none
        if client is not None:
            client.close()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @cached_property
    def _eyes(self) -> Eyes | None:
        if self.text.vision is None or not self.client.sees:
            return None
        reader = MediaReader(self.text.vision, self._caps, self._sources, most=self.client.most_pixels)
        return Eyes(reader, self.client.max_model_len)

    def _look(self, conversation: object) -> Any:
        """``conversation`` with what it shows in its parts; without eyes the text layer says which part is too much."""
        return conversation if self._eyes is None else self._eyes.look(conversation)

    def _attach(self, item: Prompt, ids: list[int], place: str) -> tuple[list[int], tuple[MediaSpan, ...]]:
        """What comes with a raw prompt. Raises RequestError."""
        if isinstance(item, str) or not (data := item.get("multi_modal_data")):
            return ids, ()
        if self._eyes is None:
            reason = "multi_modal_data is something to look at, but this model reads text only; send text"
            raise RequestError(f"{place}{reason}.", param="multi_modal_data")
        shown = self._eyes.attached(data, placeholders(ids, self.text.tokenizer), place)
        return expand(ids, shown, self.text.tokenizer)

    def _sampling(
        self, given: SamplingParams | Sequence[SamplingParams] | None, thinking: Sequence[bool]
    ) -> list[SamplingParams]:
        """One per prompt."""
        if given is None:
            return [self.text.sampling_defaults(thinks) for thinks in thinking]
        if isinstance(given, SamplingParams):
            return [given] * len(thinking)
        if len(given) != len(thinking):
            raise RequestError(
                f"sampling_params has {len(given)} entries for {len(thinking)} prompts; give one, or one per prompt.",
                param="sampling_params",
            )
        for at, params in enumerate(given):
            if not isinstance(params, SamplingParams):
                raise RequestError(
                    f"sampling_params[{at}] is of type {type(params).__name__}; give SamplingParams.",
                    param="sampling_params",
                )
        return list(given)

    def _guide(self, params: SamplingParams) -> Guide | None:
        grammar = read_structure({"structured_outputs": params.structured_outputs})
        return None if grammar is None else self.text.grammars.guide(grammar, ThinkingRules())

    def _answer(self, jobs: Sequence[_Job], *, show: bool) -> list[RequestOutput]:
        if not jobs:
            return []
        for at, job in enumerate(jobs):
            self._check(job, _place(at, jobs))
        total = sum(job.sampling.n for job in jobs)
        with Progress("Answering", total, enabled=show) as bar:
            return self._wait_for(_Run(self.client, self.text.tokenizer, bar).all(jobs))

    def _check(self, job: _Job, place: str) -> None:
        """The engine's refusal of a prompt, which it names when there are several."""
        try:
            self.client.check(job.token_ids, job.sampling)
        except RequestError as error:
            error.message = f"{place}{error.message}"
            error.args = (error.message,)
            raise

    def _wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run ``work`` on a loop of our own: the caller may itself be inside one (a notebook is)."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), name="qwench-llm", daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()  # each answer frees what it holds on its way out
            raise


def _output(index: int, reading: Reading, sampling: SamplingParams, tokenizer: Tokenizer) -> CompletionOutput:
    """An answer that is complete, in vLLM's form."""
    wanted, logprobs = sampling.logprobs is not None, reading.logprobs
    return CompletionOutput(
        index=index,
        text=reading.content,
        token_ids=reading.token_ids,
        cumulative_logprob=sum(each.logprob for each in logprobs if each) if wanted else None,
        logprobs=[_top(each, tokenizer) if each else {} for each in logprobs] if wanted else None,
        finish_reason=reading.finish_reason,
        stop_reason=reading.stop_reason,
        reasoning_content=reading.reasoning or None,
        reasoning_tokens=reading.reasoning_tokens,
        thinking_closed_by=reading.closed_by,
        tool_calls=reading.calls,
    )


class _Run:
    """The answers to several jobs at once; a stop string ends its sequence at once, not when its turn comes."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer, bar: Progress) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._bar = bar
        self._done = 0
        self._tokens = 0
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._turn = asyncio.Lock()  # two jobs that each hold half of the room would wait for ever

    async def all(self, jobs: Sequence[_Job]) -> list[RequestOutput]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._job(job)) for job in jobs]
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _job(self, job: _Job) -> RequestOutput:
        generations = await self._submit(job)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._choice(job, each)) for each in generations]
        finally:
            for generation in generations:  # also of tasks that never came to run
                generation.abort()
        readings = [task.result() for task in tasks]
        logprobs: list[dict[int, Logprob] | None] | None = None
        if job.sampling.prompt_logprobs is not None:
            logprobs = [None, *(_top(each, self._tokenizer) for each in readings[0].prompt_logprobs)]
        return RequestOutput(
            request_id=str(job.id),
            prompt=job.prompt,
            prompt_token_ids=job.token_ids,
            outputs=[_output(at, each, job.sampling, self._tokenizer) for at, each in enumerate(readings)],
            prompt_logprobs=logprobs,
            num_cached_tokens=readings[0].cached_tokens,
        )

    async def _submit(self, job: _Job) -> list[Generation]:
        """All answers of a job at once, so that they share its prompt."""
        async with self._turn:
            for _ in range(job.sampling.n):
                await self._room.acquire()
        each = [job.sampling.for_choice(index) for index in range(job.sampling.n)]
        marks = layout(job.token_ids, self._tokenizer).marks
        return self._client.submit_choices(
            job.token_ids, each, thinking=job.rules, marks=marks, media=job.media, guide=job.guide
        )

    async def _choice(self, job: _Job, generation: Generation) -> Reading:
        split = job.rules is not None
        reading = Reading(
            self._tokenizer, job.sampling, thinking_open=job.thinking_open, split_thinking=split, tools=job.tools
        )
        try:
            async for event in generation:
                before = reading.num_tokens
                reading.take(event)
                self._tokens += reading.num_tokens - before
                self._bar.update(self._done, self._speed())
                if reading.finish_reason is not None:
                    generation.abort()
                    break
        finally:
            self._room.release()
        self._done += 1
        self._bar.update(self._done, self._speed())
        for warning in reading.warnings:
            logger.warning(warning)
        return reading

    def _speed(self) -> str:
        return f"{self._tokens / max(self._bar.seconds, 1e-9):.1f} tokens/s"


def wait_loaded(client: EngineClient, *, show: bool = True) -> None:
    """Wait until the engine serves, with a bar if that takes more than two seconds. Raises what made loading fail."""
    with Progress("Loading", 1, delay=2.0, enabled=show) as bar:
        while client.status().state == "loading":
            bar.update(client.status().loaded)
            time.sleep(0.02)
    client.wait_ready()


def read_size(text: str, name: str = "memory") -> int:
    """Bytes of "2GiB", "512M", "1.5 gb" or "1000"; units are powers of 1024. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if found is None:
        raise UsageError(f"{name} is {text!r}; give bytes, or a size such as 2GiB or 512MiB.", param=name)
    return int(float(found[1]) * UNITS[found[2]])


def _check_options(options: Mapping[str, Any]) -> None:
    if options.get("trust_remote_code"):
        raise UsageError(
            "trust_remote_code is True, but Qwench never runs code that comes with a model; leave it out.",
            param="trust_remote_code",
        )
    known = [*OPTIONS, *(field.name for field in fields(EngineConfig))]
    for name in options:
        if name not in OPTIONS:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(sorted(set(known)))}."
            raise UsageError(f"LLM has no option {name}; {hint}", param=name)


def _read_prompt(item: object, tokenizer: Tokenizer, place: str) -> tuple[str | None, list[int]]:
    """A prompt's text (None if it came as ids) and ids. Raises RequestError."""
    if isinstance(item, Mapping):
        if "prompt_token_ids" in item:
            ids = item["prompt_token_ids"]
            whole = isinstance(ids, Sequence) and all(isinstance(each, int) for each in ids)
            if not whole or isinstance(ids, (str, bytes)):
                raise RequestError(f"{place}prompt_token_ids is no list of whole numbers.", param="prompt_token_ids")
            text = item.get("prompt")
            return text if isinstance(text, str) else None, _not_empty(list(ids), place)
        item = item.get("prompt")
    if isinstance(item, str):
        return item, _not_empty(tokenizer.encode(item), place)
    raise RequestError(
        f'{place}The prompt is of type {type(item).__name__}; give text, {{"prompt": text}} or '
        '{"prompt_token_ids": ids}.',
        param="prompts",
    )


def _thinking(enable: bool | None, budget: int | None, variables: Mapping[str, Any] | None) -> ThinkingPlan:
    return read_thinking({"enable_thinking": enable, "thinking_budget": budget, "chat_template_kwargs": variables})


def _conversations(messages: Sequence[Any]) -> Sequence[object]:
    """One conversation is a list of messages; several are a list of such lists."""
    several = not isinstance(messages, str) and bool(messages) and isinstance(messages[0], (list, tuple))
    return messages if several else [messages]


def _not_empty(ids: list[int], place: str) -> list[int]:
    if not ids:
        raise RequestError(f"{place}The prompt is empty; give at least one token.", param="prompts")
    return ids


def _top(entry: TokenLogprob, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """vLLM's form: the most likely tokens in order, and the drawn one."""
    top = {
        token: Logprob(value, rank, tokenizer.token_text(token))
        for rank, (token, value) in enumerate(entry.top, start=1)
    }
    top.setdefault(entry.token_id, Logprob(entry.logprob, entry.rank, tokenizer.token_text(entry.token_id)))
    return top


def _place(at: int, items: Sequence[object]) -> str:
    """What stands before a sentence about one of several prompts."""
    return f"prompts[{at}]: " if len(items) > 1 else ""


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of all; the others are its consequences."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()

"""LLM: the offline face, with vLLM's names. Prompts in, complete answers out, through the same engine as the server.

Text on both sides; the engine sees ids. Differences from vLLM, on purpose: ``token_ids`` ends before the end token,
``max_tokens`` None means "until the model is done", and without SamplingParams the model's recommended ones are used.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.request import SamplingParams, TokenEvent, TokenLogprob
from qwench.errors import EngineUnavailable, QwenchError, RequestError, UsageError
from qwench.progress import Progress
from qwench.text.chat import prompt_opens_thinking
from qwench.text.model import ModelText
from qwench.text.stream import AnswerStream
from qwench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwench.engine.client import Generation

Prompt = str | Mapping[str, Any]
Result = TypeVar("Result")

MAX_IN_FLIGHT = 256  # sequences handed to the engine at once; it has a queue of its own
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
DTYPE_NAMES = {"half": "float16", "float": "float32"}
OPTIONS = ("tensor_parallel_size", "gpu_memory_utilization", "max_step_tokens", "page_size", "offline", "trust_remote_code")


@dataclass(frozen=True)
class Logprob:
    """A token's raw log-probability; ``rank`` 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class CompletionOutput:
    """One answer. Of ``chat``, ``text`` is the answer proper and ``reasoning_content`` the thinking before it."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning_content: str | None = None
    reasoning_tokens: int = 0

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
class _Job:
    """One prompt to be answered."""

    prompt: str | None
    token_ids: list[int]
    sampling: SamplingParams
    thinking_open: bool = False
    split_thinking: bool = False


class LLM:
    """A model in this process. ``memory`` (for cached keys, values and states) takes bytes or text such as "2GiB".

    Further options: tensor_parallel_size, gpu_memory_utilization, max_step_tokens, page_size, offline; and
    trust_remote_code, which may only be False. Raises QwenchError with one sentence if the model cannot be run.
    Use it as a context manager, or call ``close``.
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
            **{name: value for name, value in options.items() if name != "trust_remote_code"},
        )
        client = EngineClient(config)
        self._set_up(client, ModelText(client.folder, client.model))
        client.start(self.text.vocabulary)
        wait_loaded(client)

    @classmethod
    def over(cls, client: EngineClient, text: ModelText) -> LLM:
        """The face of an engine that somebody else started; ``close`` closes it."""
        llm = cls.__new__(cls)
        llm._set_up(client, text)
        return llm

    def _set_up(self, client: EngineClient, text: ModelText) -> None:
        self.client = client
        self.text = text
        self._ids = count()
        self._loop: asyncio.AbstractEventLoop | None = None

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]:
        """Continue each prompt: text, {"prompt": text} or {"prompt_token_ids": ids}; outputs in the same order.

        ``sampling_params``: one for all, one per prompt, or None for the recommended ones. Raises RequestError naming
        the prompt before anything runs.
        """
        items = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
        read = [_read_prompt(item, self.text.tokenizer, _place("prompts", at, items)) for at, item in enumerate(items)]
        thinking = [text is not None and prompt_opens_thinking(text) for text, _ in read]
        sampling = self._sampling(sampling_params, thinking)
        jobs = [_Job(text, ids, params) for (text, ids), params in zip(read, sampling, strict=True)]
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
        """Answer a conversation, or each of several. ``enable_thinking`` None leaves it to the model's template."""
        if thinking_budget is not None:
            raise RequestError(
                "thinking_budget is not available yet; bound the whole answer with max_tokens, or set "
                "enable_thinking=False.",
                param="thinking_budget",
            )
        variables = dict(chat_template_kwargs or {})
        switch = variables.pop("enable_thinking", None) if enable_thinking is None else enable_thinking
        several = isinstance(messages, Sequence) and bool(messages) and isinstance(messages[0], Sequence)
        several = several and not isinstance(messages[0], str)
        prompts = [
            self.text.chat_prompt(
                conversation,
                tools=tools,
                enable_thinking=switch,
                add_generation_prompt=add_generation_prompt,
                variables=variables,
            )
            for conversation in (messages if several else [messages])
        ]
        sampling = self._sampling(sampling_params, [prompt.thinks for prompt in prompts])
        jobs = [
            _Job(prompt.text, prompt.token_ids, params, prompt.thinking_open, split_thinking=True)
            for prompt, params in zip(prompts, sampling, strict=True)
        ]
        return self._answer(jobs, show=bool(use_tqdm))

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

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

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
                    f"sampling_params[{at}] is of type {type(params).__name__}; give SamplingParams.", param="sampling_params"
                )
        return list(given)

    def _answer(self, jobs: Sequence[_Job], *, show: bool) -> list[RequestOutput]:
        if not jobs:
            return []
        total = sum(job.sampling.n for job in jobs)
        with Progress("Answering", total, enabled=show) as bar:
            return self._wait_for(_Run(self.client, self.text.tokenizer, bar, self._ids).all(jobs))

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


class _Run:
    """The answers to several jobs at once; a stop string ends its sequence at once, not when its turn comes."""

    def __init__(self, client: EngineClient, tokenizer: Tokenizer, bar: Progress, ids: count[int]) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._bar = bar
        self._ids = ids
        self._done = 0
        self._tokens = 0
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def all(self, jobs: Sequence[_Job]) -> list[RequestOutput]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._job(job, _place("prompts", at, jobs))) for at, job in enumerate(jobs)
                ]
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _job(self, job: _Job, place: str) -> RequestOutput:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._choice(job, index, place)) for index in range(job.sampling.n)]
        answers = [task.result() for task in tasks]
        first = answers[0]
        prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        if job.sampling.prompt_logprobs is not None:
            prompt_logprobs = [None, *(self._logprobs(each, job.sampling.prompt_logprobs) for each in first.prompt_logprobs)]
        return RequestOutput(
            request_id=str(next(self._ids)),
            prompt=job.prompt,
            prompt_token_ids=job.token_ids,
            outputs=[answer.output() for answer in answers],
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=first.cached_tokens,
        )

"""Random changes to valid requests, and their delivery to an application in this process. A seed gives the same ones."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import httpx
from starlette.types import ASGIApp

from tests.hostile.target import CHAT, COMPLETIONS, EITHER, HELLO, Case, faults_of
from tests.media.files import data_uri, encoded, noise

AT_ONCE = 8
DAMAGED = 1 / 8  # of the keys
UNKNOWN = frozenset({401})
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e308, 2**31, 2**63, -(2**64), "", "x", "\0", "\ud800", "é", "<|im_end|>", "auto", "1", "-1", "null",
    "data:image/png;base64,AA==", "http://127.0.0.1:1/x", "../../etc/passwd", "a" * 5_000, [], {}, [[]], [None], [{}], {"": None}, {"a": {"b": {"c": []}}},
    {"type": "object"}, {"$ref": "#"}, {"type": "text", "text": "x"}, {"role": "user", "content": "x"}, {"role": "assistant"}, ["x"] * 300, [1, "a", None],
)  # fmt: skip
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
FLAT = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
    {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1}'},
]
BLOCKS: list[dict[str, Any]] = [
    *HELLO,
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "x", "signature": "y"},
            {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "1"}]},
            {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        ],
    },
]
SHORT: dict[str, Any] = {"messages": HELLO, "max_tokens": 2}
VALID: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, SHORT | {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "logprobs": True, "top_logprobs": 2, "n": 2}),
    (CHAT, SHORT | {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "1", "tool_call_id": "c"}], "max_tokens": 1}),
    (CHAT, SHORT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}}),
    (CHAT, SHORT | {"enable_thinking": True, "thinking_budget": 4, "reasoning": {"effort": "low"}, "chat_template_kwargs": {"x": 1}}),
    (CHAT, SHORT | {"stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"5": 1}, "stop_token_ids": [7]}),
    (CHAT, SHORT | {"guided_regex": "[0-9]{1,3}", "min_p": 0.1, "presence_penalty": 1, "repetition_penalty": 1.1}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": data_uri(encoded(noise(32, 32)))}}]}], "max_tokens": 1}),
    (CHAT, SHORT | {"reasoning_strategy": {"method": "vote", "samples": 2, "budget": 8}}),
    (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "echo": True, "user": "u", "metadata": {"a": "b"}}),
    (COMPLETIONS, {"prompt": [[1, 2], [3]], "max_tokens": 1, "structured_outputs": {"choice": ["a", "b"]}}),
    ("/tokenize", {"messages": HELLO, "tools": [TOOL], "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/apply-template", {"messages": HELLO, "enable_thinking": False, "chat_template_kwargs": {}}),
    (CHAT + "/control", {"id": "chatcmpl-x", "action": "reasoning_end"}),
    (RESPONSES, {"input": "x", "max_output_tokens": 2, "instructions": "y", "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "low"}, "metadata": {"a": "b"}}),
    (RESPONSES, {"input": [*ITEMS, {"type": "function_call_output", "call_id": "c", "output": "1"}], "tools": [FLAT], "tool_choice": "auto", "max_output_tokens": 2, "store": False}),
    (RESPONSES, {"input": ITEMS, "stream": True, "max_output_tokens": 2, "include": ["reasoning.encrypted_content"], "top_logprobs": 1}),
    (RESPONSES + "/input_tokens", {"input": ITEMS, "tools": [FLAT]}),
    (RESPONSES + "/compact", {"model": "nano", "input": [*ITEMS, {"type": "compaction", "encrypted_content": "qwench.eA=="}], "max_output_tokens": 2}),
    (MESSAGES, {"messages": BLOCKS, "max_tokens": 2, "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], "tools": [{"name": "add", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"}}),
    (MESSAGES, {"messages": BLOCKS[:1], "max_tokens": 2, "stream": True, "thinking": {"type": "enabled", "budget_tokens": 4}, "stop_sequences": ["x"], "top_k": 5}),
    (MESSAGES + "/count_tokens", {"messages": BLOCKS}),
    ("/api/chat", {"model": "nano", "messages": HELLO, "stream": False, "options": {"num_predict": 2, "temperature": 0.5}, "format": {"type": "object"}}),
    ("/api/generate", {"model": "nano", "prompt": "x", "suffix": "y", "think": False, "options": {"num_predict": 2}, "keep_alive": "5m"}),
    ("/api/show", {"model": "nano", "verbose": True}),
    ("/v1/batches", {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": "b"}}),
)  # fmt: skip


def mutated(seed: int, key: str | None = None) -> Case:
    """A valid request with one to four things changed: values and keys of its JSON, then perhaps its bytes.

    Where there is a ``key``, it is damaged once in eight times, and then nothing else may happen than a refusal.
    """
    rng = random.Random(seed)
    path, valid = rng.choice(VALID)
    body: Any = copy.deepcopy(valid)
    for _ in range(rng.randint(1, 3)):
        _change(rng, body)
    case = Case(f"mutation {seed}", body, path, allowed=EITHER)
    if rng.random() >= 0.7:
        case = replace(case, body=_bytes(rng, bytearray(case.content)))
    if key and rng.random() < DAMAGED:
        wrong = _bytes(rng, bytearray(key.encode())).decode("latin-1")
        if wrong.strip() != key:  # space around it is none of it
            return replace(case, headers={"authorization": f"Bearer {wrong}"}, allowed=UNKNOWN)
    return case


def _change(rng: random.Random, body: Any) -> None:
    places = list(_places(body))
    if not places:
        return
    holder, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "type", "text", "content", "", "n", f"{key}s"))] = holder.pop(key)
    elif what == 2:
        holder[key] = [holder[key]] * rng.randint(1, 20)
    elif what == 3:
        holder[key] = {"type": holder[key]}
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inner):
        yield value, key
        yield from _places(each)


def _bytes(rng: random.Random, data: bytearray) -> bytes:
    at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1))) if data else (0, 0)
    match rng.randrange(4):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:end]
        case 2:
            data[at:at] = data[at:end] * rng.randint(1, 5)
        case _:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(data)


def bombard(app: ASGIApp, cases: Iterable[Case], key: str | None = None) -> tuple[list[str], float]:
    """What is wrong with the answers of ``app``, and the most processor time that its event loop spent without a pause.

    ``key`` is sent with every case that does not bring an authorization of its own.
    """
    return asyncio.run(_bombard(app, list(cases), key))


async def _bombard(app: ASGIApp, cases: list[Case], key: str | None) -> tuple[list[str], float]:
    faults: list[str] = []
    usual = {"authorization": f"Bearer {key}"} if key else dict[str, str]()
    waiting = iter(cases)
    longest = 0.0
    transport = httpx.ASGITransport(app)  # an exception of the application comes through

    async def worker(client: httpx.AsyncClient) -> None:
        for case in waiting:
            headers = [(name.encode(), value.encode("latin-1")) for name, value in {**usual, **case.headers}.items()]
            try:
                async with asyncio.timeout(60):
                    answer = await client.post(case.path, content=case.content, headers=headers)
            except TimeoutError:
                faults.append(f"{case.name}: no answer within a minute")
                continue
            except Exception as error:  # noqa: BLE001 - whatever came through is what is looked for
                faults.append(f"{case.name}: {error!r}")
                continue
            sent = case.content.decode("utf-8", "replace")
            faults.extend(f"{case.name}: {fault} {sent[:300]}" for fault in faults_of(answer, sent, key))
            if "internal_error" in answer.text or answer.status_code not in case.allowed:
                faults.append(f"{case.name}: {answer.status_code} {answer.text[:200]} {sent[:300]}")

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)  # one turn of the loop
            longest = max(longest, time.thread_time() - before)
            await asyncio.sleep(0.002)

    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=90) as client:
        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(worker(client) for _ in range(AT_ONCE)))
        watcher.cancel()
    return faults, longest

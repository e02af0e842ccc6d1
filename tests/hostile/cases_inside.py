"""Hostile requests whose values are the attack: JSON, numbers, prompts, schemas, tools, names, keys, headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.hostile.target import CHAT, COMPLETIONS, EITHER, HELLO, Case

POSTED = (CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/apply-template", "/v1/chat/completions/control")
FOREIGN = "https://evil.example"


def malformed(paths: tuple[str, ...] = POSTED) -> Iterator[Case]:
    """Bodies that are no JSON object, on every route that takes one."""
    value: Any
    bodies: dict[str, bytes] = {
        "empty": b"", "a brace": b"{", "NUL": b"\0", "not UTF-8": b"\xff\xfe{}", "a half surrogate": b'{"a": "\\ud800"}', "NaN": b'{"n": NaN}',
        "Infinity": b'{"temperature": Infinity}', "1e999": b'{"temperature": 1e999, "messages": []}', "a long number": b'{"n": ' + b"9" * 5_000 + b"}",
        "depth": b"[" * 50_000, "deep objects": b'{"a":' * 20_000, "an array": b"[1]", "a text": b'"x"', "null": b"null", "a number": b"1e400",
        "a BOM": b"\xef\xbb\xbf{}", "UTF-16": '{"a": 1}'.encode("utf-16"), "comments": b"{} // x", "a comma": b'{"a": 1,}', "a form": b"a=1&b=2",
        "twice": b'{"messages": [], "messages": 5, "prompt": 5, "tokens": "x", "id": 5}', "a million values": b"[" + b"0," * 1_000_001 + b"0]",
    }  # fmt: skip
    for name, body in bodies.items():
        for path in paths:
            yield Case(f"{name} to {path}", body, path)
    for path in paths:
        for value in (
            {},
            {"messages": {"a": 1}},
            {"messages": [[]], "prompt": {}, "tokens": {}, "id": []},
            {"": ""},
            {"__proto__": {}, "__class__": 1},
        ):
            yield Case(f"{value} to {path}", value, path)


def limits() -> Iterator[Case]:
    """Every field that sizes a loop, a list or an index, far out of its range."""
    value: Any
    whole: Any = (10**9, -(10**9), 2**63, 2**64, -1, 1.5, "1", [], {}, True)
    real: Any = (1e308, -1e308, 2**70, "1", [], {}, True)
    of_chat: dict[str, Any] = {
        "n": whole,
        "max_completion_tokens": whole,
        "top_logprobs": whole,
        "thinking_budget": whole,
    }
    of_chat |= {
        "thinking_token_budget": whole,
        "min_pixels": whole,
        "fps": real,
        "seed": (2**65, -(2**65), "1", [], 1.5),
    }
    of_both: dict[str, Any] = {
        "max_tokens": whole,
        "min_tokens": whole,
        "top_k": whole,
        "temperature": real,
        "top_p": real,
        "min_p": real,
    }
    of_both |= {"presence_penalty": real, "frequency_penalty": real, "repetition_penalty": (0, -1, *real)}
    for name, values in {**of_chat, **of_both}.items():
        for value in values:
            yield Case(f"{name} = {value}", {"messages": HELLO, "max_tokens": 2, name: value}, allowed=EITHER)
    for name, values in {**of_both, "n": whole, "logprobs": whole, "best_of": whole, "echo": (5, "x", [])}.items():
        for value in values:
            told = {"prompt": "x", "max_tokens": 2, name: value}
            yield Case(f"{name} = {value} of completions", told, COMPLETIONS, allowed=EITHER)
    certain: dict[str, Any] = {
        "n": 10**9, "max_tokens": 10**9, "min_tokens": 10**9, "top_logprobs": 10**9, "best_of": 10**9, "stop_token_ids": [10**9],
        "logit_bias": {"999999999": 1}, "stop": ["x"] * 100_000, "temperature": -1,
    }  # fmt: skip
    for name, value in certain.items():
        path, body = (COMPLETIONS, {"prompt": "x"}) if name == "best_of" else (CHAT, {"messages": HELLO})
        yield Case(f"{name} far out", {**body, name: value}, path)
    for name, value in {
        "stop_token_ids": [-1], "logit_bias": {"-1": 5}, "cache_salt": "x" * 500_000, "user": "x" * 500_000, "metadata": {"x" * 999: 1},
        "n_discard": -1, "n_keep": -5, "prompt_cache_key": "x" * 99_999, "priority": -(2**63), "stop": [""] * 32, "seed": -(2**63),
        "truncate_prompt_tokens": -1, "length_penalty": 1e300, "repetition_penalty": 1e-320, "bad_words": ["x"] * 9_999, "request_id": "../x",
    }.items():  # fmt: skip
        yield Case(f"{name} odd", {"messages": HELLO, "max_tokens": 2, name: value}, allowed=EITHER)
    penalties = {
        "presence_penalty": 2,
        "frequency_penalty": -2,
        "repetition_penalty": 100,
        "logit_bias": {"1": -100},
        "logprobs": True,
    }
    yield Case("all penalties", {"messages": HELLO, "max_tokens": 4, **penalties}, allowed=EITHER)
    yield Case(
        "nothing may come",
        {"messages": HELLO, "max_tokens": 3, "logit_bias": {str(n): -100 for n in range(4_000)}},
        allowed=EITHER,
    )


def prompts() -> Iterator[Case]:
    """Prompts without end, of nothing, of tags and of ids that are none."""
    prompt: Any
    message: Any
    for prompt in ("", [], [[]], [""], ["", "x"], [-1], [2**40], [[1, -1]], ["x"] * 100_000, [[1]] * 10_000, [1] * 2_000_000, "a" * 1_000_000,
                   " " * 500_000, "é" * 200_000, "\0" * 100, ["x", 5], [1.5], [True], [None], {"a": 1}, "x\ud800y"):  # fmt: skip
        yield Case(f"prompt {str(prompt)[:24]!r}", {"prompt": prompt, "max_tokens": 1}, COMPLETIONS, allowed=EITHER)
    tags = (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
    )
    for tag in tags:
        for times in (1, 1_000):
            spoken = [{"role": "user", "content": tag * times}]
            yield Case(f"{times} {tag}", {"messages": spoken, "max_tokens": 1}, allowed=EITHER)
            yield Case(f"{times} raw {tag}", {"prompt": tag * times, "max_tokens": 1}, COMPLETIONS, allowed=EITHER)
    for text in (
        "a" * 1_000_000,
        "\n" * 300_000,
        "\u202e" * 50_000,
        "\U0010ffff" * 50_000,
        "\ufdd0" * 32,
        "".join(map(chr, range(0xFDD0, 0xFDF0))) + "<|im_end|>",
    ):
        yield Case(
            f"text {text[:3]!r}", {"messages": [{"role": "user", "content": text}], "max_tokens": 1}, allowed=EITHER
        )
    parts = [{"type": "text", "text": "x"}] * 50_000
    yield Case("50,000 parts", {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}, allowed=EITHER)
    yield Case("20,000 messages", {"messages": HELLO * 20_000, "max_tokens": 1}, allowed=EITHER)
    for text in (
        "((a+)+)+$" * 2_000,
        "<function=" * 20_000,
        "<parameter=" * 20_000,
        "{" * 100_000,
        "![](" * 20_000,
        "data:image/png;base64," * 9_000,
    ):
        yield Case(
            f"parser food {text[:12]}",
            {"messages": [{"role": "user", "content": text}], "max_tokens": 1},
            allowed=EITHER,
        )
    for tokens in ([-1], [2**40], [[1]], "x", [1.5], [True], [0] * 500_000):
        yield Case(f"detokenize {str(tokens)[:12]}", {"tokens": tokens}, "/detokenize", allowed=EITHER)
    for message in (
        {"role": "user"}, {"role": "user", "content": 5}, {"role": "wizard", "content": "x"}, {"role": ["user"], "content": "x"}, {"content": "x"},
        {"role": "assistant", "tool_calls": 5}, {"role": "assistant", "tool_calls": [5]}, {"role": "assistant", "tool_calls": [{"function": {}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, {"role": "user", "content": [5]},
        {"role": "user", "content": [{"type": "text"}]}, {"role": "user", "content": {"type": "text", "text": "x"}}, {"role": {}, "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": 5}]}, {"role": "assistant", "function_call": "x"}, {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    ):  # fmt: skip
        yield Case(f"message {str(message)[:60]}", {"messages": [message]})
    for message in ({"role": "tool", "content": {"a": 1}}, {"role": "user", "content": "x", "name": {"a": ["<|im_end|>"]}},
                    {"role": "user", "content": "x", "reasoning_content": {"x": 1}}, {"role": "assistant", "content": None, "reasoning_details": [5]}):  # fmt: skip
        yield Case(f"message {str(message)[:60]}", {"messages": [*HELLO, message], "max_tokens": 1}, allowed=EITHER)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def schemas() -> Iterator[Case]:
    """Schemas that are wrong, endless, or far too large."""
    tool: Any
    ring = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    tower = {
        "$defs": {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}, "maxItems": 9} for n in range(60)}
        | {"d60": {}},
        "$ref": "#/$defs/d0",
    }
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}
    given: dict[str, Any] = {
        "unknown type": {"type": "banana"}, "a text": "text", "a number": 5, "type 5": {"type": 5}, "properties 5": {"type": "object", "properties": 5},
        "required 5": {"type": "object", "required": 5}, "a ring": ring, "a tower": tower, "wide": wide, "ref to itself": {"$ref": "#"}, "no such ref": {"$ref": "#/x"},
        "enum of nothing": {"enum": []}, "100,000 values": {"enum": [f"v{n}" for n in range(100_000)]}, "10,000 values": {"enum": list(range(10_000))},
        "pattern unclosed": {"type": "string", "pattern": "("}, "pattern (a+)+": {"type": "string", "pattern": "^(a+)+$"}, "bad escape": {"type": "string", "pattern": "\\c\\x"},
        "pattern of counts": {"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"}, "pattern a{1e9}": {"type": "string", "pattern": "a{1000000000}"},
        "length 1e9": {"type": "string", "minLength": 10**9}, "items 1e9": {"type": "array", "minItems": 10**9}, "minimum 1e308": {"type": "number", "minimum": 1e308},
        "multipleOf 0": {"type": "number", "multipleOf": 0}, "multipleOf tiny": {"type": "number", "multipleOf": 1e-300}, "maximum below": {"type": "integer", "minimum": 5, "maximum": 1},
        "all of itself": {"allOf": [{"$ref": "#"}]}, "any of itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "lookahead": {"type": "string", "pattern": "(?=a)"},
        "3,000 in a chain": {"$defs": {str(n): {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{n + 1}"}}} for n in range(3_000)} | {"3000": {}}, "$ref": "#/$defs/0"},
        "200 deep": nested(200), "300 deep": nested(300), "244 deep": nested(244), "format": {"type": "string", "format": "x"}, "unicode": {"type": "string", "pattern": "\\p{L}{1,9999}"},
        "towers of any": {"anyOf": [{"anyOf": [{"anyOf": [{"type": "object"}] * 20}] * 20}] * 20}, "$defs 5": {"$defs": 5, "type": "string"},
    }  # fmt: skip
    for at, (name, schema) in enumerate(given.items()):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {"messages": HELLO, "max_tokens": 2, "response_format": form}
        yield Case(f"schema {name}", body, allowed=EITHER, again=at % 3 != 0)
        body = {"prompt": "x", "max_tokens": 2, "guided_json": schema}
        yield Case(f"guided_json {name}", body, COMPLETIONS, allowed=EITHER, again=at % 3 != 1)
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        for strict in (False, True):
            asked = {**tool, "function": {**tool["function"], "strict": strict}}
            yield Case(
                f"tool {name} {strict}",
                {"messages": HELLO, "max_tokens": 2, "tools": [asked], "tool_choice": "required"},
                allowed=EITHER,
                again=not strict or at % 3 != 2,
            )


def patterns() -> Iterator[Case]:
    """Regular expressions of that kind."""
    for pattern in (
        "(",
        "[",
        "(?P<",
        "a{2,1}",
        "a{1000000000}",
        "(a|aa)+$",
        "((a*)*)*",
        "(x+x+)+y",
        "(((((a{9}){9}){9}){9}){9}){9}",
        "\\",
        "(?<=a)b",
        "(" * 5_000,
        "[\\u0000-\\U0010ffff]{500}",
    ):
        yield Case(
            f"regex {pattern[:20]}", {"messages": HELLO, "max_tokens": 2, "guided_regex": pattern}, allowed=EITHER
        )


def grammars() -> Iterator[Case]:
    """Grammars of that kind, and wishes for a form that are none."""
    wish: Any
    for grammar in ("", "start:", "start: start", "start: a\na: b\nb: a", "start: start start | \"a\"", "start: " + "(" * 5_000, "start: " + "(" * 30_000 + '"a"' + ")" * 30_000,
                    "start: " + "[" * 30_000, 'start: ("a"?)*', 'start: (("a"*)*)*', "start: %json {", '%import x', "root ::= x", "start: <[999999]>", 'start: /(/', "start: " + '"a" | ' * 20_000 + '"b"',
                    'start: "a"{1000000000}', "start: " + "a" * 200_000, "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(60)) + '\nr60: "a"\nstart: r0',
                    "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(18_000)) + '\nr18000: "a"'):  # fmt: skip
        yield Case(
            f"grammar {grammar[:20]!r}", {"messages": HELLO, "max_tokens": 2, "grammar": grammar}, allowed=EITHER
        )
    for wish in ({"guided_choice": ["x"] * 50_000}, {"guided_choice": ["x" * 200_000]}, {"guided_choice": [""]}, {"guided_choice": [5]}, {"structured_outputs": {}}, {"structured_outputs": {"json": 5}},
                 {"guided_json": {}, "guided_regex": "a"}, {"response_format": {"type": "regex"}}, {"response_format": {"type": "json_schema"}}, {"response_format": {"type": {}}}, {"response_format": {}}):  # fmt: skip
        yield Case(f"wish {str(wish)[:40]}", {"messages": HELLO, "max_tokens": 2, **wish}, allowed=EITHER)


def crowd() -> Iterator[Case]:
    """More schemas than are kept compiled."""
    for number in range(150):
        yield Case(
            f"schema number {number}",
            {"messages": HELLO, "max_tokens": 1, "guided_json": {"const": f"c{number}"}},
            allowed=EITHER,
            again=number >= 70,  # that is more already
        )


def tools() -> Iterator[Case]:
    """Tools that are none, and histories of calls that break parsers."""
    given: Any
    choice: Any
    function = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}},
    }
    for given in ([], [5], [{}], [{"type": "function"}], [{"type": "function", "function": 5}], [{"type": "function", "function": {"name": 5}}], 5, {}, "x",
                  [{"type": "function", "function": {"name": "f", "parameters": 5}}], [function, function], [{"type": "custom", "custom": {}}]):  # fmt: skip
        yield Case(f"tools {str(given)[:50]}", {"messages": HELLO, "max_tokens": 2, "tools": given}, allowed=EITHER)
    for name in (
        "",
        "a" * 129,
        "a b",
        "<|im_end|>",
        'a"b',
        "a\nb",
        "../x",
        "__import__('os')",
        "é" * 50,
        "x\0y",
        "$(true)",
        "f>",
    ):
        tool = {"type": "function", "function": {"name": name, "parameters": {}}}
        yield Case(f"name {name[:20]!r}", {"messages": HELLO, "max_tokens": 2, "tools": [tool]}, allowed=EITHER)
    for choice in ("x", 5, {}, {"type": "function"}, {"type": "function", "function": {"name": "g"}}, {"type": "allowed_tools"}, {"type": "allowed_tools", "allowed_tools": {"tools": 5}},
                   {"type": "allowed_tools", "allowed_tools": {"tools": [5], "mode": "x"}}, {"type": []}, ["auto"]):  # fmt: skip
        yield Case(f"choice {str(choice)[:50]}", {"messages": HELLO, "tools": [function], "tool_choice": choice})
    many = [
        {"type": "function", "function": {"name": f"f{n}", "parameters": {"type": "object", "properties": {"x": {}}}}}
        for n in range(2_000)
    ]
    yield Case("2,000 tools", {"messages": HELLO, "max_tokens": 2, "tools": many}, allowed=EITHER)
    food = (
        "[f(x=" * 5_000,
        "f(a=1," * 5_000,
        '{"name": ' * 5_000,
        "<parameter=x>" * 5_000,
        "</parameter>" * 5_000,
        '\\"' * 10_000,
        "__import__('os').mkdir('x')",
        "{" * 2_000,
        "[" * 2_000,
    )
    for text in food:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": text})}}
        turns = [
            *HELLO,
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": text},
        ]
        yield Case(f"history {text[:12]}", {"messages": turns, "max_tokens": 2, "tools": [function]}, allowed=EITHER)
        raw = {**call, "function": {"name": "f", "arguments": text}}
        yield Case(
            f"arguments {text[:12]}",
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [raw]}], "max_tokens": 2},
            allowed=EITHER,
        )
    deep = "<think>"
    for _ in range(500):
        deep = [deep]  # type: ignore[assignment]
    yield Case(
        "deep arguments",
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"x": deep}}}]},
            ]
        },
        allowed=EITHER,
    )
    yield Case(
        "deep tool",
        {
            "messages": HELLO,
            "max_tokens": 1,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": deep}}}],
        },
        allowed=EITHER,
    )


def names() -> Iterator[Case]:
    """Names that other servers made paths or queries of. What exists and what does not look the same."""
    for name in ("../../etc/passwd", "/etc/passwd", "/etc/nothing-there", "..\\..\\x", "nano/../../x", "file:///etc/passwd", "/dev/random", "/proc/self/environ", "x\0y", "a" * 100_000,
                 "' OR 1=1 --", "'; DROP TABLE x; --", "$(true)", "`true`", "${jndi:ldap://127.0.0.1/x}", "%2e%2e%2f", "Qwen/Qwen3.5-4B", "\n\nx: y", "", " "):  # fmt: skip
        yield Case(f"model {name[:20]!r}", {"messages": HELLO, "model": name})
        yield Case(f"model {name[:20]!r} of completions", {"prompt": "x", "model": name}, COMPLETIONS)
        yield Case(f"user {name[:20]!r}", {"messages": HELLO, "max_tokens": 1, "user": name}, allowed=EITHER)
        yield Case(f"control {name[:20]!r}", {"id": name, "action": "reasoning_end"}, "/v1/chat/completions/control")
    for path in ("/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%2fetc%2fpasswd", "/static/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/assets/..%5c..%5cx",
                 "/v1/models/nano%00", "/v1//models/x", "//etc/passwd", "/docs/../../etc/passwd", "/page/../../../etc/passwd", "/v1/files/..%2f..%2fx/content", "/v1/responses/..%2fx"):  # fmt: skip
        yield Case(f"path {path}", None, path, "GET")


def echoes() -> Iterator[Case]:
    """Words of the client's that come back in a header, because they name what has no effect."""
    for at, word in enumerate(
        ("x\r\nset-cookie: a=b", "\U0001f511", "\n", "\0", "\x7f", "\x85", "é", "\u0436", " x ", "x" * 5_000)
    ):
        asked: dict[str, Any] = {"messages": HELLO, "max_tokens": 1}
        for name in ("reasoning", "thinking", "chat_template_kwargs"):
            yield Case(f"{name} with {word[:9]!r}", {**asked, name: {word: 1}}, allowed=EITHER, again=at > 1)
        yield Case(f"field {word[:9]!r}", {**asked, word: 1}, allowed=EITHER, again=at > 1)
        told = [{"role": "assistant", "content": [{"type": f"{word}_tool_result"}]}, *HELLO]
        yield Case(f"block {word[:9]!r}", {**asked, "messages": told}, "/v1/messages", allowed=EITHER, again=at > 1)
        yield Case(
            f"tool {word[:9]!r}",
            {**asked, "tools": [{"type": word, "name": "x"}]},
            "/v1/messages",
            allowed=EITHER,
            again=at > 1,
        )
        for path in ("/v1/responses", "/v1/responses/input_tokens"):
            more = {"include": [word], "tools": [{"type": word}], word: 1}
            for name, value in {"text": {word: 1}, **more}.items():
                body = {"input": "x", "max_output_tokens": 1, name: value}
                yield Case(f"{name[:9]!r} with {word[:9]!r} to {path}", body, path, allowed=EITHER, again=at > 1)
        yield Case(
            f"Ollama's {word[:9]!r}", {**asked, "stream": False, word: 1}, "/api/chat", allowed=EITHER, again=at > 1
        )


def browsers() -> Iterator[Case]:
    """What a stranger's page can make a browser send."""
    body = {"messages": HELLO, "max_tokens": 1}
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json",
    ):
        for headers in (
            {"origin": FOREIGN},
            {"origin": "null"},
            {"sec-fetch-site": "cross-site"},
            {"origin": "http://127.0.0.1.evil.example"},
        ):
            yield Case(f"{kind} from {headers}", body, headers={"content-type": kind, **headers})
    for path in (CHAT, "/v1/models", "/"):
        asked = {
            "origin": FOREIGN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        }
        yield Case(f"preflight of {path}", None, path, "OPTIONS", asked)
        for method in ("DELETE", "PUT"):
            yield Case(f"{method} of {path}", None, path, method, {"origin": FOREIGN, "sec-fetch-site": "cross-site"})


def encodings() -> Iterator[Case]:
    """Heads and bodies of which a plain server takes too much; those that httpx can write."""
    body = {"messages": HELLO, "max_tokens": 1}
    for coding in ("gzip", "br", "deflate", "zstd", "gzip, gzip", "x-unknown"):
        yield Case(f"content-encoding {coding}", body, headers={"content-encoding": coding})
    yield Case("101 headers", body, headers={f"x-{n}": "y" for n in range(101)})
    yield Case("40 KB of headers", body, headers={f"x-{n}": "y" * 1_000 for n in range(40)})
    yield Case("a body over the limit", b" " * (5 << 20))
    yield Case(
        "multipart of 20,000 parts",
        b"--x\r\n\r\n" * 20_000,
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    yield Case(
        "multipart and a million dashes",
        b"--x\r\n" + b"-" * 1_000_000,
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    yield Case(
        "a form of a million separators",
        b"&" * 1_000_000,
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    for path in ("/", "/docs", "/openapi.json"):
        yield Case(
            f"ranges of {path}",
            None,
            path,
            "GET",
            {"range": "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(2_000))},
            EITHER,
        )
    for value in ("x" * 200, "a b", "../x", "<script>", "%0d%0a", "~"):
        yield Case(f"request id {value[:10]!r}", body, headers={"x-request-id": value}, allowed=EITHER)

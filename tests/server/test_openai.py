"""The real openai client against the real engine: what a newcomer's quick start does."""

from __future__ import annotations

from typing import Any

import openai as sdk
import pytest
from openai import OpenAI

from qwench.text.model import ModelText
from tests.server.conftest import NAME
from tests.server.tiny import WINDOW

HELLO: Any = [{"role": "user", "content": "Hello, what is the answer?"}]
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 12}


def test_chat_answers_in_openais_shape(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(messages=HELLO, **GREEDY)
    choice = answer.choices[0]
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", NAME)
    assert answer.system_fingerprint
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.message.refusal is None
    assert choice.message.annotations == []
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.usage.prompt_tokens_details is not None
    cached = answer.usage.prompt_tokens_details.cached_tokens  # of what other tests asked
    assert cached is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    timings = answer.model_extra["timings"] if answer.model_extra else {}
    assert timings["prompt_n"] == answer.usage.prompt_tokens - cached
    assert timings["predicted_n"] == 12
    assert timings["prompt_ms"] > 0
    assert timings["predicted_per_second"] > 0


def test_streaming_begins_with_the_role_and_ends_with_reason_and_usage(openai: OpenAI) -> None:
    chunks = list(
        openai.chat.completions.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].choices[0].delta.content is None
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert openai.chat.completions.create(messages=HELLO, **GREEDY).choices[0].message.content == "".join(
        chunk.choices[0].delta.content or "" for chunk in chunks[:-1]
    )


def test_without_include_usage_the_stream_has_no_usage(openai: OpenAI) -> None:
    chunks = list(openai.chat.completions.create(messages=HELLO, stream=True, **GREEDY))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_n_gives_different_choices_that_a_seed_repeats(openai: OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = openai.chat.completions.create(
            messages=HELLO, model=NAME, n=3, seed=5, max_tokens=8, extra_body={"ignore_eos": True}
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 24
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_logprobs_of_chat_name_every_token(openai: OpenAI, text: ModelText) -> None:
    answer = openai.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=3, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    spelled = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert spelled.decode("utf-8", "replace") == answer.choices[0].message.content
    for entry in logprobs.content:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert entry.logprob == values[0]  # greedy takes the likeliest
        assert entry.token == bytes(entry.bytes or []).decode("utf-8", "replace")


def test_a_stop_string_ends_the_answer_before_it(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(messages=HELLO, **GREEDY).choices[0].message.content or ""
    stop = whole[3:5]
    before = whole[: whole.index(stop)]
    for form in (stop, [stop, "never written"]):
        answer = openai.chat.completions.create(messages=HELLO, stop=form, **GREEDY)
        assert answer.choices[0].message.content == before
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens < 12
    kept = openai.chat.completions.create(
        messages=HELLO, stop=stop, extra_body={"include_stop_str_in_output": True}, **GREEDY
    )
    assert kept.choices[0].message.content == before + stop


def test_logit_bias_and_stop_token_ids_reach_the_engine(openai: OpenAI, text: ModelText) -> None:
    token = text.tokenizer.encode("a")[0]
    bias = {str(token): 100}
    forced = openai.chat.completions.create(messages=HELLO, logit_bias=bias, **GREEDY)
    assert forced.choices[0].message.content == "a" * 12
    stopped = openai.chat.completions.create(
        messages=HELLO, logit_bias=bias, extra_body={"stop_token_ids": [token]}, **GREEDY
    )
    assert stopped.choices[0].message.content == ""
    assert stopped.choices[0].finish_reason == "stop"
    longer = openai.chat.completions.create(
        messages=HELLO, logit_bias=bias, extra_body={"stop_token_ids": [token], "min_tokens": 3}, **GREEDY
    )
    assert longer.usage is not None
    assert longer.usage.completion_tokens >= 3


def test_the_models_own_end_ends_the_answer_unless_ignored(openai: OpenAI, text: ModelText) -> None:
    end = text.tokenizer.id_of("<|im_end|>")
    bias = {str(end): 100}
    ended = openai.chat.completions.create(messages=HELLO, logit_bias=bias, **GREEDY)
    assert ended.choices[0].message.content  # it says something first
    assert ended.choices[0].finish_reason == "stop"
    assert ended.usage is not None
    assert ended.usage.completion_tokens < 4
    ignored = openai.chat.completions.create(
        messages=HELLO, logit_bias=bias, extra_body={"ignore_eos": True, "skip_special_tokens": False}, **GREEDY
    )
    assert ignored.choices[0].message.content == "<|im_end|>" * 12


@pytest.mark.parametrize("spelling", [{"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}])
def test_both_thinking_switches_open_a_thinking_block(
    openai: OpenAI, text: ModelText, spelling: dict[str, Any]
) -> None:
    bias = {str(text.tokenizer.encode("a")[0]): 100}
    on = openai.chat.completions.create(messages=HELLO, extra_body=spelling, logit_bias=bias, **GREEDY)
    message = on.choices[0].message
    assert message.content == "aaa"  # a quarter of the tokens is the answer's
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == message.model_extra["reasoning"] == "a" * 6
    assert on.usage is not None
    assert on.usage.completion_tokens_details is not None
    assert on.usage.completion_tokens_details.reasoning_tokens == 8
    assert on.choices[0].model_extra is not None
    assert on.choices[0].model_extra["finish_details"]["closed_by"] == "reserve"
    off = openai.chat.completions.create(messages=HELLO, extra_body={"enable_thinking": False}, **GREEDY)
    assert off.choices[0].message.content
    assert off.choices[0].message.model_extra is not None
    assert off.choices[0].message.model_extra["reasoning_content"] is None


def test_tools_and_a_history_of_calls_are_accepted(openai: OpenAI) -> None:
    function = {"name": "weather", "description": "The weather", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    history: Any = [
        {"role": "developer", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    tools: Any = [{"type": "function", "function": function}]
    counted = []
    for choice in ("auto", "none"):
        answer = openai.chat.completions.create(messages=history, tools=tools, tool_choice=choice, **GREEDY)
        assert answer.usage is not None
        counted.append(answer.usage.prompt_tokens)
    assert counted[0] > counted[1]  # with none the tools are left out


@pytest.mark.parametrize(("shape", "count"), [("text", 1), ("texts", 2), ("ids", 1), ("lists of ids", 2)])
def test_completions_take_every_shape_of_prompt(openai: OpenAI, text: ModelText, shape: str, count: int) -> None:
    ids = text.tokenizer.encode("Hello world")
    forms: dict[str, Any] = {"text": "Hello world", "texts": ["Hello world"] * 2, "ids": ids, "lists of ids": [ids] * 2}
    answer = openai.completions.create(prompt=forms[shape], model=NAME, temperature=0, n=1)
    one = openai.completions.create(prompt="Hello world", model=NAME, temperature=0).choices[0].text
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == [one] * count
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16 * len(answer.choices)  # OpenAI's default of max_tokens


def test_completions_number_choices_by_prompt_and_n(openai: OpenAI) -> None:
    both = openai.completions.create(prompt=["Hello", "def add"], model=NAME, n=2, seed=3, max_tokens=4)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    second = openai.completions.create(prompt="def add", model=NAME, n=2, seed=3, max_tokens=4)
    assert [choice.text for choice in second.choices] == [choice.text for choice in both.choices[2:]]


def test_echo_with_logprobs_tells_the_prompts_too(openai: OpenAI, text: ModelText) -> None:
    prompt = "The answer is"
    answer = openai.completions.create(prompt=prompt, model=NAME, echo=True, logprobs=2, max_tokens=3, temperature=0)
    choice = answer.choices[0]
    assert choice.text.startswith(prompt)
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    count = len(text.tokenizer.encode(prompt))
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == count + 3
    assert "".join(logprobs.tokens[:count]) == prompt
    assert [value is None for value in logprobs.token_logprobs] == [True] + [False] * (count + 2)
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:at])) for at in range(count + 3)]


def test_the_model_is_listed_and_found_by_its_names_only(openai: OpenAI) -> None:
    (listed,) = openai.models.list().data
    assert listed.id == NAME
    assert listed.model_extra is not None
    assert listed.model_extra["max_model_len"] == WINDOW
    assert openai.models.retrieve(NAME).id == openai.models.retrieve("short").id == NAME
    assert openai.chat.completions.create(**{**GREEDY, "model": "short"}, messages=HELLO).model == NAME
    for ask in (
        lambda: openai.models.retrieve("qwen3.5:4b"),
        lambda: openai.chat.completions.create(**{**GREEDY, "model": "qwen3.5:4b"}, messages=HELLO),
        lambda: openai.completions.create(model="qwen3.5:4b", prompt="Hello"),
    ):
        with pytest.raises(sdk.NotFoundError, match=f"'qwen3.5:4b' is not served here; send '{NAME}'") as failure:
            ask()
        assert failure.value.code == "model_not_found"


def test_a_prompt_beyond_the_window_names_both_numbers(openai: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 1000}]
    with pytest.raises(sdk.BadRequestError, match=rf"prompt has \d{{4}} tokens.*{WINDOW}") as failure:
        openai.chat.completions.create(messages=long, **GREEDY)
    assert (failure.value.code, failure.value.param) == ("context_length_exceeded", "messages")
    assert failure.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(sdk.BadRequestError) as failure:
        openai.responses.create(model=NAME, input="word " * 1000)
    assert failure.value.param == "input"
    with pytest.raises(sdk.BadRequestError) as failure:
        openai.completions.create(model=NAME, prompt="word " * 1000)
    assert failure.value.param == "prompt"


def test_wrong_values_are_refused_by_name(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="max_tokens is 0") as failure:
        openai.chat.completions.create(**{**GREEDY, "max_tokens": 0}, messages=HELLO)
    assert failure.value.param == "max_tokens"
    assert failure.value.type == "invalid_request_error"

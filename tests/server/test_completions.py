"""Raw completions beyond the plain ones: filling the middle, the best of many, and nothing but the prompt."""

from __future__ import annotations

from copy import copy
from typing import Any

import openai as sdk
import pytest
from openai import OpenAI

from qwench.engine.request import SamplingParams, TokenEvent, TokenLogprob
from qwench.errors import RequestError
from qwench.server.prepare import prepare_completion
from qwench.text.infill import infill
from qwench.text.model import ModelText
from tests.server.conftest import NAME, Start
from tests.server.scripted import ScriptedEngine

FILL: dict[str, Any] = {"prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))"}
URL = "/v1/completions"


def test_the_middle_is_asked_for_with_the_models_own_tokens(text: ModelText) -> None:
    prepared = prepare_completion({**FILL, "stop_token_ids": [7], "logit_bias": {"9": 1}}, text)
    (prompt,) = prepared.prompts
    told = text.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    assert told == f"<|fim_prefix|>{FILL['prompt']}<|fim_suffix|>{FILL['suffix']}<|fim_middle|>"
    ends = [text.tokenizer.id_of(token) for token in ("<|fim_pad|>", "<|file_sep|>", "<|repo_name|>")]
    assert prepared.sampling.stop_token_ids is not None
    assert {7, *ends} <= set(prepared.sampling.stop_token_ids)
    assert prepared.sampling.logit_bias == {9: 1.0, text.tokenizer.id_of("<think>"): -100.0}


def test_what_only_looks_like_a_token_stays_text(text: ModelText) -> None:
    ids = infill("<|fim_middle|>", "<|im_end|>", text.tokenizer)
    assert ids.count(text.tokenizer.id_of("<|fim_middle|>") or -1) == 1
    assert text.tokenizer.id_of("<|im_end|>") not in ids
    assert ids[-1] == text.tokenizer.id_of("<|fim_middle|>")


def test_a_prompt_of_ids_can_be_filled_too(text: ModelText) -> None:
    ids = text.tokenizer.encode("x = ")
    (prompt,) = prepare_completion({"prompt": ids, "suffix": "y"}, text).prompts
    assert list(prompt.token_ids[1 : 1 + len(ids)]) == ids


def test_a_model_without_the_tokens_says_so(text: ModelText) -> None:
    bare = copy(text)
    bare.tokenizer = copy(text.tokenizer)
    bare.tokenizer.id_of = lambda token: None  # type: ignore[method-assign]
    with pytest.raises(RequestError, match=r"suffix cannot be used: this model has no <\|fim_prefix\|> token"):
        prepare_completion(FILL, bare)


def test_an_empty_suffix_is_none(text: ModelText) -> None:
    (prompt,) = prepare_completion({"prompt": "Hello", "suffix": ""}, text).prompts
    assert list(prompt.token_ids) == text.tokenizer.encode("Hello")


def test_the_openai_client_fills_the_middle(openai: OpenAI, text: ModelText) -> None:
    before, behind = text.tokenizer.encode(FILL["prompt"]), text.tokenizer.encode(FILL["suffix"])
    answer = openai.completions.create(model=NAME, temperature=0, max_tokens=8, **FILL)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(before) + len(behind) + 3
    chunks = openai.completions.create(model=NAME, temperature=0, max_tokens=8, stream=True, **FILL)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def ranked(folder: Any) -> ScriptedEngine:
    """Says a, b, c, ... to one choice after the other; the middle one of three is the likeliest."""
    told = iter("abcdefghi")
    likely = {"a": -3.0, "b": -1.0, "c": -2.0, "d": -0.5, "e": -9.0, "f": -0.7}

    def script(_prompt: str, sampling: SamplingParams) -> list[TokenEvent]:
        letter = next(told)
        (token,) = engine.text.tokenizer.encode(letter)
        known = () if sampling.logprobs is None else (TokenLogprob(token, likely[letter], 1, ()),)
        return [TokenEvent((token,), known, finish_reason="length")]

    engine = ScriptedEngine(folder, script)
    return engine


def test_the_likeliest_of_many_are_told_best_first(scripted: Start) -> None:
    engine, http = scripted(ranked)
    body = {"prompt": ["x", "y"], "best_of": 3, "n": 2, "max_tokens": 1}
    answer = http.post(URL, json=body).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "b"),
        (1, "c"),
        (2, "d"),
        (3, "f"),
    ]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None] * 4  # they were only ranked by
    assert answer["usage"]["completion_tokens"] == 6  # all that were drawn
    assert len(engine.submitted) == 6


def test_logprobs_of_the_best_are_told_where_they_are_asked_for(scripted: Start) -> None:
    _, http = scripted(ranked)
    answer = http.post(URL, json={"prompt": "x", "best_of": 3, "logprobs": 0, "max_tokens": 1}).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("b", [-1.0])


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"best_of": 1, "n": 2}, "best_of", r"best_of is 1; give a whole number from n \(2\) to 128"),
        ({"best_of": 500}, "best_of", "best_of is 500"),
        ({"best_of": 2, "stream": True}, "best_of", "cannot be combined with stream"),
        ({"suffix": "x", "echo": True}, "echo", "echo cannot be combined with suffix"),
        ({"suffix": 3}, "suffix", "suffix is 3"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0"),
        ({"n": 0}, "n", "n is 0"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(
    openai: OpenAI, fields: dict[str, Any], param: str, sentence: str
) -> None:
    with pytest.raises(sdk.BadRequestError, match=sentence) as failure:
        openai.completions.create(model=NAME, prompt="Hello", extra_body=fields)
    assert failure.value.param == param


def test_echo_without_tokens_tells_how_likely_a_text_is(openai: OpenAI, text: ModelText) -> None:
    told = openai.completions.create(model=NAME, prompt="The answer is", echo=True, logprobs=1, max_tokens=0)
    more = openai.completions.create(model=NAME, prompt="The answer is", echo=True, logprobs=1, max_tokens=1)
    count = len(text.tokenizer.encode("The answer is"))
    (choice,) = told.choices
    assert (choice.text, choice.finish_reason) == ("The answer is", "length")
    assert told.usage is not None
    assert (told.usage.completion_tokens, told.usage.prompt_tokens) == (0, count)
    assert choice.logprobs is not None
    assert more.choices[0].logprobs is not None
    assert choice.logprobs.tokens is not None
    assert more.choices[0].logprobs.token_logprobs is not None
    assert len(choice.logprobs.tokens) == count
    assert choice.logprobs.token_logprobs == more.choices[0].logprobs.token_logprobs[:count]

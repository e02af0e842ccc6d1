"""The table of request fields tells the truth: every field of the real clients is in it and is treated as it says."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, get_args

import pytest
from anthropic.types import message_count_tokens_params as counting
from anthropic.types import message_create_params as messages
from anthropic.types.beta import message_create_params as beta_messages
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses

from qwench.engine.request import SamplingParams
from qwench.errors import ModelNotFound, RequestError, TemplateError
from qwench.server.messages.fields import MessagesRequest
from qwench.server.naming import Names
from qwench.server.prepare import Prepared, prepare_chat, prepare_completion
from qwench.server.responses.fields import ResponsesRequest
from qwench.server.schemas import (
    ChatRequest,
    CompletionRequest,
    Endpoint,
    FieldRule,
    Treatment,
    rules,
    sift,
)
from qwench.server.tables import RULES
from qwench.text.model import ModelText

ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
TABLES: dict[Endpoint, Sequence[FieldRule]] = dict(RULES.values())
BOTH: tuple[Endpoint, ...] = ("chat", "completions")
MINIMAL: dict[Endpoint, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hello"}]},
    "completions": {"prompt": "Hello"},
}
ROWS = [(endpoint, rule) for endpoint, table in TABLES.items() for rule in table if endpoint in rule.endpoints]


def row_id(value: object) -> str:
    return value.name if isinstance(value, FieldRule) else str(value)


def prepared(endpoint: Endpoint, text: ModelText, **fields: Any) -> Prepared:
    prepare = prepare_chat if endpoint == "chat" else prepare_completion
    return prepare({**MINIMAL[endpoint], **fields}, text)


@pytest.mark.parametrize(
    ("endpoint", "params"),
    [
        ("chat", chat.CompletionCreateParamsBase),
        ("completions", completions.CompletionCreateParamsBase),
        ("messages", messages.MessageCreateParamsBase),
        ("messages", beta_messages.MessageCreateParamsBase),
        ("messages", counting.MessageCountTokensParams),
        ("responses", responses.ResponseCreateParamsBase),
    ],
)
def test_every_field_of_the_real_clients_is_in_the_table(endpoint: Endpoint, params: type) -> None:
    assert set(params.__annotations__) <= rules(endpoint, TABLES[endpoint]).keys()


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("chat", ChatRequest),
        ("completions", CompletionRequest),
        ("messages", MessagesRequest),
        ("responses", ResponsesRequest),
    ],
)
def test_the_supported_fields_are_those_of_the_request_type(endpoint: Endpoint, kind: Any) -> None:
    known = rules(endpoint, TABLES[endpoint])
    supported = {name for name, rule in known.items() if rule.treatment is Treatment.SUPPORTED}
    assert supported == set(kind.model_fields)


def test_no_field_stands_twice_and_each_has_a_note() -> None:
    for endpoint in ENDPOINTS:
        rows = [rule for rule in TABLES[endpoint] if endpoint in rule.endpoints]
        assert len(rules(endpoint, TABLES[endpoint])) == len(rows)
        assert all(rule.note and ";" not in rule.note for rule in rows if rule.treatment is Treatment.IGNORED)


@pytest.mark.parametrize(("endpoint", "rule"), ROWS, ids=row_id)
def test_each_field_is_treated_as_its_row_says(endpoint: Endpoint, rule: FieldRule) -> None:
    body, table = {rule.name: {"some": "value"}}, TABLES[endpoint]
    if rule.treatment is Treatment.REFUSED:
        with pytest.raises(RequestError, match=rule.name) as failure:
            sift(body, endpoint, table)
        assert failure.value.param == rule.name
        assert rule.note in failure.value.message
    elif rule.treatment is Treatment.IGNORED:
        kept, warnings = sift(body, endpoint, table)
        assert not kept
        assert warnings == [f"{rule.name}: ignored, {rule.note}"]
    else:
        assert sift(body, endpoint, table) == (body, [])
    assert sift({rule.name: None}, endpoint, table) == ({}, [])
    for neutral in rule.neutral:
        assert sift({rule.name: neutral}, endpoint, table) == ({}, [])


def test_fields_of_the_other_endpoint_are_unknown(text: ModelText) -> None:
    assert prepared("chat", text, echo=True).warnings == ("'echo': unknown field, ignored",)
    assert prepared("completions", text, tools=[]).warnings == ("'tools': unknown field, ignored",)


@pytest.mark.parametrize("endpoint", BOTH)
def test_sampling_fields_arrive(endpoint: Endpoint, text: ModelText) -> None:
    sent = {
        "temperature": 0.3,
        "top_p": 0.4,
        "top_k": 5,
        "min_p": 0.06,
        "presence_penalty": 0.7,
        "frequency_penalty": -0.8,
        "repetition_penalty": 1.1,
        "seed": 12,
        "stop": ["x"],
        "stop_token_ids": [3],
        "min_tokens": 2,
        "max_tokens": 9,
        "n": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    sampling = prepared(endpoint, text, logit_bias={"7": -3}, **sent).sampling
    assert {name: getattr(sampling, name) for name in sent} == sent
    assert sampling.logit_bias == {7: -3.0}


def test_chat_takes_the_recommended_sampling_and_completions_the_neutral(text: ModelText) -> None:
    assert prepared("chat", text).sampling == text.sampling_defaults(thinking=False)
    thinking = prepared("chat", text, enable_thinking=True)
    assert thinking.thinking_open
    assert thinking.sampling == text.sampling_defaults(thinking=True)
    assert prepared("completions", text).sampling == SamplingParams(max_tokens=16)


def test_the_newer_name_of_max_tokens_counts_too(text: ModelText) -> None:
    assert prepared("chat", text, max_completion_tokens=7).sampling.max_tokens == 7
    assert prepared("chat", text, max_completion_tokens=7, max_tokens=7).sampling.max_tokens == 7


def test_reasoning_effort_none_switches_thinking_off(text: ModelText) -> None:
    off = prepared("chat", text, reasoning_effort="none")
    assert (off.thinking_open, off.warnings) == (False, ())
    high = prepared("chat", text, reasoning_effort="high")
    assert (high.thinking_open, high.warnings) == (True, ())
    assert high.thinking == {
        "enabled": True,
        "budget": 16_384,
        "closing_allowance": high.rules.allowance if high.rules else None,
        "from": ["reasoning_effort"],
    }


def test_any_model_will_do_where_no_name_is_given(text: ModelText) -> None:
    body = {**MINIMAL["chat"], "model": "gpt-5"}
    assert prepare_chat(body, text).prompts
    with pytest.raises(ModelNotFound):
        prepare_chat(body, text, Names(("nano",), "served"))


def test_a_checkpoint_without_template_says_what_to_use_instead(text: ModelText) -> None:
    bare = copy(text)
    bare.template = None
    with pytest.raises(TemplateError, match=r"no chat template, .* /v1/completions") as caught:
        prepare_chat(MINIMAL["chat"], bare)
    assert str(text.path) not in caught.value.message
    assert prepare_completion(MINIMAL["completions"], bare).prompts

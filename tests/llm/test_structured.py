"""Structured output offline: the embedded model's answers fit, alone, among others and chosen from many."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from qwench import LLM, SamplingParams
from qwench.errors import RequestError

SUM = [{"role": "user", "content": "What is 47 + 38?"}]
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model="nano", device="cpu") as llm:
        yield llm


@pytest.mark.parametrize("thinking", [False, True])
def test_a_chat_answers_in_json(llm: LLM, thinking: bool) -> None:
    params = SamplingParams(temperature=1.0, seed=1, n=3, max_tokens=200, structured_outputs={"json": SCHEMA})
    outputs = llm.chat(SUM, params, enable_thinking=thinking, use_tqdm=False)[0].outputs
    assert all(isinstance(json.loads(output.text)["sum"], int) for output in outputs)
    assert all(bool(output.reasoning_content) == thinking for output in outputs)


def test_each_prompt_has_its_own_wish(llm: LLM) -> None:
    params = [
        SamplingParams(temperature=0, max_tokens=20, structured_outputs={"regex": "[0-9]{3}"}),
        SamplingParams(temperature=0, max_tokens=20),
        SamplingParams(temperature=0, max_tokens=20, structured_outputs={"choice": ["left", "right"]}),
    ]
    number, free, side = (answer.outputs[0].text for answer in llm.generate(["The "] * 3, params, use_tqdm=False))
    assert re.fullmatch("[0-9]{3}", number)
    assert side in ("left", "right")
    assert free == llm.generate("The ", params[1], use_tqdm=False)[0].outputs[0].text


def test_many_samples_fit(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=30, structured_outputs={"choice": ["yes", "no"]})
    assert llm.reason(SUM, {"method": "vote", "samples": 3}, sampling_params=params).text in ("yes", "no")


def test_wrong_wishes_are_told(llm: LLM) -> None:
    with pytest.raises(RequestError, match="give an object"):
        SamplingParams(structured_outputs="json")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match='"not"'):
        llm.chat(SUM, SamplingParams(structured_outputs={"json": {"not": {}}}), use_tqdm=False)
    with pytest.raises(RequestError, match="give one of"):
        llm.generate("a", SamplingParams(structured_outputs={"xml": 1}), use_tqdm=False)

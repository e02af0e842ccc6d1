"""LangChain's ChatOpenAI before a server of nano: it needs to change the address and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.slow
langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed: `make clients`")


class Sum(BaseModel):
    """A sum and its parts."""

    first: int
    second: int
    total: int


@pytest.fixture
def chat(address: str) -> Any:
    return langchain.ChatOpenAI(model="nano", base_url=f"{address}/v1", api_key="none", temperature=0, max_tokens=512)


def test_an_answer_whole_and_in_pieces_is_the_same(chat: Any) -> None:
    whole = chat.invoke("What is 47 + 38?")
    assert "85" in whole.content
    assert whole.response_metadata["finish_reason"] == "stop"
    pieces = list(chat.stream("What is 47 + 38?", stream_usage=True))
    assert len(pieces) > 3
    assert "".join(piece.content for piece in pieces) == whole.content
    used = [piece.usage_metadata for piece in pieces if piece.usage_metadata]
    assert used[-1]["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_a_tool_goes_there_and_back(chat: Any) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool  # type: ignore[untyped-decorator]
    def get_weather(city: str) -> str:
        """The weather of a city now."""
        return f'{{"city": "{city}", "temperature": 21, "sky": "sunny"}}'

    able = chat.bind_tools([get_weather])
    asked = [HumanMessage("What is the weather in Paris?")]
    called = able.invoke(asked)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"city": "Paris"})]
    gathered = None
    for piece in able.stream(asked):
        gathered = piece if gathered is None else gathered + piece
    assert gathered is not None
    assert gathered.tool_calls[0]["args"] == {"city": "Paris"}
    result = ToolMessage(get_weather.invoke(called.tool_calls[0]["args"]), tool_call_id=called.tool_calls[0]["id"])
    assert "21" in able.invoke([*asked, called, result]).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_fits_its_schema(chat: Any, method: str) -> None:
    schema: Any = Sum.model_json_schema() if method == "json_mode" else Sum
    strict = {"strict": True} if method == "function_calling" else {}  # without it a call may leave parameters out
    loose = method == "json_mode"  # which keys there are, and when it ends, is up to the model
    asked = "Extract the name and age as JSON: Anna is 31 years old." if loose else "Give 47 + 38 as JSON."
    told = chat.with_structured_output(schema, method=method, **strict).invoke(asked)
    assert isinstance(told, dict if method == "json_mode" else Sum)

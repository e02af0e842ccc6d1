"""What is served, in the shapes of three clients, which all tell the same facts."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from anthropic import Anthropic, NotFoundError
from openai import OpenAI

from tests.media.files import NANO
from tests.server.conftest import NAME, Start
from tests.server.scripted import Seeing, answering
from tests.server.tiny import WINDOW

# What Codex's own type of a model cannot do without.
CODEX = {
    "slug": str,
    "display_name": str,
    "description": str,
    "supported_reasoning_levels": list,
    "shell_type": str,
    "visibility": str,
    "supported_in_api": bool,
    "priority": int,
    "base_instructions": str,
    "supports_reasoning_summaries": bool,
    "support_verbosity": bool,
    "truncation_policy": dict,
    "supports_parallel_tool_calls": bool,
    "context_window": int,
    "experimental_supported_tools": list,
    "input_modalities": list,
}


def test_openais_client_reads_window_and_abilities(openai: OpenAI) -> None:
    (listed,) = openai.models.list().data
    told = openai.models.retrieve(NAME)
    assert told == listed
    assert (told.id, told.object, told.owned_by) == (NAME, "model", "qwench")
    more = told.model_extra or {}
    assert more["context_length"] == more["max_model_len"] == WINDOW
    assert (more["input_modalities"], more["output_modalities"]) == (["text"], ["text"])
    assert more["capabilities"] == {"thinking": True, "tools": True, "structured_outputs": True, "vision": False}


def test_anthropics_client_gets_its_shape(address: str) -> None:
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        (listed,) = client.models.list().data
        told = client.models.retrieve(NAME)
        with pytest.raises(NotFoundError):
            client.models.retrieve("claude-x")
    assert told == listed
    assert (told.type, told.id, told.max_input_tokens) == ("model", NAME, WINDOW)
    assert told.capabilities is not None
    assert told.capabilities.thinking.types.adaptive.supported
    assert told.capabilities.effort.high.supported
    assert not told.capabilities.image_input.supported
    assert not told.capabilities.server_tools.web_search.supported


def test_codex_gets_its_list(http: httpx.Client) -> None:
    (model,) = http.get("/v1/models?client_version=0.150.0").json()["models"]
    assert {name for name, kind in CODEX.items() if not isinstance(model.get(name), kind)} == set()
    assert {"apply_patch_tool_type", "default_verbosity", "upgrade", "default_reasoning_level"} <= model.keys()
    assert model["context_window"] == WINDOW
    assert model["truncation_policy"]["limit"] < WINDOW
    assert [level["effort"] for level in model["supported_reasoning_levels"]] == ["low", "medium", "high", "xhigh"]


def test_what_it_sees_is_said_everywhere(scripted: Start) -> None:
    engine: Any
    engine, http = scripted(lambda _: Seeing(NANO, lambda _prompt, sampling: engine.spell("", sampling)))
    told = http.get("/v1/models").json()
    assert told["data"][0]["input_modalities"] == ["text", "image", "video"]
    assert told["models"][0]["input_modalities"] == ["text", "image"]
    card = http.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()["data"][0]
    assert card["capabilities"]["image_input"] == card["capabilities"]["pdf_input"] == {"supported": True}


def test_a_checkpoint_without_a_template_neither_thinks_nor_calls(scripted: Start) -> None:
    engine, http = scripted(answering("Hello."))
    engine.text.template = None
    told = http.get("/v1/models").json()
    assert told["data"][0]["capabilities"] == {
        "thinking": False,
        "tools": False,
        "structured_outputs": True,
        "vision": False,
    }
    assert told["models"][0]["supported_reasoning_levels"] == []

"""Which names in ``model`` are answered, on every face; and that quick starts need nothing changed but the base URL."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata
from typing import Any, get_args

import httpx
import pytest

from qwench.cli.serve import ANSWERS_TO
from qwench.errors import ModelNotFound, RequestError
from qwench.server.naming import LIBRARY, UNNAMED, AnswersTo, Names
from tests.server.conftest import NAME, Start
from tests.server.scripted import answering

HELLO = [{"role": "user", "content": "Hello"}]
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/responses": {"input": "Hello"},
    "/v1/responses/input_tokens": {"input": "Hello"},
    "/v1/responses/compact": {"input": "Hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/api/chat": {"messages": HELLO, "stream": False},
    "/api/generate": {"prompt": "Hello", "stream": False},
}
UNASKED = "/v1/responses/input_tokens"  # where the model need not be said
HOSTED = (
    "gpt-5.5", "gpt-4o-mini", "gpt-3.5-turbo", "openai/gpt-5.5", "chatgpt-4o-latest", "o3", "o4-mini",
    "codex-mini-latest",
    "claude-opus-5-5", "claude-3-5-haiku-20241022", "anthropic/claude-sonnet-5", "Claude-X", "gemini-3-pro",
)  # fmt: skip
# Weights that people have on their disks, slips of the pen, and what is no name at all.
OTHERS = (
    "qwen3.5:4b", "Qwen/Qwen3.5-0.8B", "tinyy", "Tiny", "gpt-oss-20b", "openai/gpt-oss-120b", "gpt2", "gemma4", "o",
    "olmo-3", "claude", "llama3.3", "gpt-4o\n", "gpt-4o\r\nx: y", "gpt-4\xf6", "gpt-4" + "o" * 100, " gpt-4o",
    "../gpt-4o",
)  # fmt: skip

# What quick starts of Ollama name, and what could have been meant for what is served, or is a slip.
FAMILIES = (
    "gemma4", "gemma3:1b", "gemma3n:e4b", "llama3.2", "llama3.2-vision:11b", "llama2", "codellama:7b-code", "mistral",
    "mistral-small3.2:24b", "mixtral:8x7b", "phi4-mini", "deepseek-r1:8b", "gpt-oss:20b-cloud", "kimi-k2:1t-cloud",
    "granite4", "smollm2:135m", "command-r", "llava", "Llama3.1:8B-instruct-q4_K_M",
)  # fmt: skip
NO_FAMILIES = (
    "qwen3:4b", "qwen3.5", "qwen3-coder:480b-cloud", "tinyy", "gema3", "gemmma", "llamas", "ollama", "llama 3", "phil",
    "mistral\n", "llama3.2\r\nx: y", "gemma" + "3" * 100, "../gemma3", "hf.co/x/llama3", "",
)  # fmt: skip


def told(answer: httpx.Response) -> str:
    """The sentence of a refusal, in whichever shape."""
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("path", ASKED)
def test_a_hosted_models_name_is_answered_with_a_warning_and_the_true_name(scripted: Start, path: str) -> None:
    _, http = scripted(answering("Yes."))
    answer = http.post(path, json={"model": "gpt-5.5", **ASKED[path]})
    assert answer.status_code == 200, answer.text
    assert f"model: 'gpt-5.5' is not served here, '{NAME}' answers" in answer.headers["x-qwench-warnings"]
    assert answer.json().get("model", NAME) == NAME
    assert "model:" not in http.post(path, json={"model": NAME, **ASKED[path]}).headers.get("x-qwench-warnings", "")


@pytest.mark.parametrize("path", ASKED)
def test_a_missing_name_and_a_strange_one_are_refused_with_the_one_to_send(scripted: Start, path: str) -> None:
    _, http = scripted(answering("Yes."))
    unsaid: tuple[dict[str, Any], ...] = ({}, {"model": None})
    if path == UNASKED:
        assert {http.post(path, json={**given, **ASKED[path]}).status_code for given in unsaid} == {200}
        unsaid = ()
    for given in (*unsaid, {"model": ""}):
        missing = httpx.post(http.base_url.join(path), json={**given, **ASKED[path]})
        assert (missing.status_code, told(missing)) == (400, f"model is missing; send '{NAME}'.")
        error = missing.json()["error"]
        assert "param" not in error or error["param"] == "model"
    strange = http.post(path, json={"model": "tinyy", **ASKED[path]})
    assert (strange.status_code, told(strange)) == (404, f"The model 'tinyy' is not served here; send '{NAME}'.")


@pytest.mark.parametrize("path", ASKED)
def test_a_family_of_ollamas_is_answered_on_ollamas_routes_alone(scripted: Start, path: str) -> None:
    _, http = scripted(answering("Yes."))
    answer = http.post(path, json={"model": "gemma4:latest", **ASKED[path]})
    assert answer.status_code == (200 if path.startswith("/api/") else 404)
    if answer.status_code == 200:
        assert f"model: 'gemma4' is not served here, '{NAME}' answers" in answer.headers["x-qwench-warnings"]
        assert answer.json()["model"] == NAME
        assert http.post("/api/show", json={"model": "gemma4"}).status_code == 404
    _, strict = scripted(answering("Yes."), answers_to="served")
    assert strict.post(path, json={"model": "gemma4", **ASKED[path]}).status_code == 404


@pytest.mark.parametrize("path", ASKED)
def test_the_operator_decides_who_is_answered(scripted: Start, path: str) -> None:
    _, strict = scripted(answering("Yes."), answers_to="served")
    assert strict.post(path, json={"model": "gpt-5.5", **ASKED[path]}).status_code == 404
    assert strict.post(path, json={"model": NAME, **ASKED[path]}).status_code == 200
    _, easy = scripted(answering("Yes."), answers_to="any")
    answer = easy.post(path, json={"model": "tinyy", **ASKED[path]})
    assert "model: 'tinyy' is not served here" in answer.headers["x-qwench-warnings"]
    assert httpx.post(easy.base_url.join(path), json=ASKED[path]).status_code == 200


def test_a_stream_tells_it_too(scripted: Start) -> None:
    _, http = scripted(answering("Yes."))
    body = {"model": "gpt-5.5", "messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert "'gpt-5.5' is not served here" in answer.headers["x-qwench-warnings"]
        assert f'"model":"{NAME}"' in answer.read().decode()


@pytest.mark.parametrize("answers_to", get_args(AnswersTo))
@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2023-06-01"}])
def test_what_is_told_about_a_model_is_told_under_its_own_names(
    scripted: Start, answers_to: str, headers: dict[str, str]
) -> None:
    """Nothing here is said to be GPT: lists and cards do not know the names that are answered out of courtesy."""
    _, http = scripted(answering("Yes."), answers_to=answers_to)
    for name in ("gpt-5.5", "claude-opus-5-5", "tinyy"):
        assert http.get(f"/v1/models/{name}", headers=headers).status_code == 404
        assert http.post("/api/show", json={"model": name}).status_code == 404
    assert [each["id"] for each in http.get("/v1/models", headers=headers).json()["data"]] == [NAME]


def test_names_of_hosted_models_are_told_from_all_others() -> None:
    lenient, strict, easy = Names((NAME,)), Names((NAME,), "served"), Names((NAME,), "any")
    for name in HOSTED:
        assert len(lenient.meant(name)) == len(easy.meant(name)) == 1
        with pytest.raises(ModelNotFound):
            strict.meant(name)
    for name in OTHERS:
        assert len(easy.meant(name)) == 1
        assert easy.meant(name)[0].isascii()
        assert easy.meant(name)[0].isprintable()
        for names in (lenient, strict):
            with pytest.raises(ModelNotFound, match=f"send '{NAME}'"):
                names.meant(name)
    for names in (lenient, strict):
        with pytest.raises(RequestError, match="model is missing"):
            names.meant(None)
    assert easy.meant(None) == lenient.meant(NAME) == UNNAMED.meant("gpt-5") == UNNAMED.meant(None) == []
    assert Names(("gpt-4o",), "served").meant("gpt-4o") == []  # an operator may call it so
    assert get_args(AnswersTo) == ANSWERS_TO


def test_families_of_ollamas_are_told_from_all_others() -> None:
    names, strict = Names((NAME,)), Names((NAME,), "served")
    for name in FAMILIES:
        assert names.meant(name, LIBRARY) == [f"model: '{name}' is not served here, '{NAME}' answers"]
        for given in ((names, ()), (strict, (LIBRARY,))):
            with pytest.raises(ModelNotFound):
                given[0].meant(name, *given[1])
    for name in NO_FAMILIES:
        with pytest.raises((ModelNotFound, RequestError)):
            names.meant(name, LIBRARY)
    assert names.meant("gpt-4o", LIBRARY)


def examples(package: str) -> list[str]:
    """The first examples of a client's own README that ask a model and need no file and no account."""
    readme = metadata(package).json["description"]
    found = re.findall(r"^```python\n(.*?)^```", str(readme), re.DOTALL | re.MULTILINE)
    return [
        code
        for code in found
        if re.search(r"\.(responses|completions|messages)\.create\(|from ollama import chat\n", code)
    ][:2]


@pytest.mark.parametrize(
    ("package", "number", "model"),
    [
        ("openai", 0, "gpt-"),
        ("openai", 1, "gpt-"),
        ("anthropic", 0, "claude-"),
        ("ollama", 0, "gemma"),
        ("ollama", 1, "gemma"),
    ],
)
def test_a_clients_own_quick_start_runs_with_another_base_url(
    scripted: Start, package: str, number: int, model: str
) -> None:
    """Word for word as it stands in the README of the installed client; all that changes is where it leads."""
    code = examples(package)[number]
    assert re.search(f"model=.{model}", code)
    _, http = scripted(answering("Arr, ye ask it."))
    address = str(http.base_url).rstrip("/")
    known = {
        "OPENAI_BASE_URL": f"{address}/v1",
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_API_KEY": "none",
        "OLLAMA_HOST": address,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=known, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Arr, ye ask it." in done.stdout

"""Files and batches with the real openai client: results, errors by line, owners, limits, a server that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import openai as sdk
import pytest
from openai import OpenAI
from openai.types import Batch
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from qwench.engine.request import SamplingParams, TokenEvent
from qwench.server import files as module
from qwench.server.keys import Key
from qwench.server.service import ServerSettings
from qwench.server.store import Store
from tests.server.conftest import NAME, Start, running, wait_until
from tests.server.scripted import ScriptedEngine, answering
from tests.server.test_serve import address_of, serve

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
COMPLETIONS: Literal["/v1/completions"] = "/v1/completions"
RESPONSES: Literal["/v1/responses"] = "/v1/responses"


def line(custom_id: str, content: str = "Hello", url: str = CHAT, **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": content}]} if url == CHAT else {"prompt": content}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": NAME, **asked, **fields}}


def jsonl(*lines: dict[str, Any] | str) -> bytes:
    return "".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines).encode()


def begin(client: OpenAI, content: bytes, endpoint: str = CHAT) -> Batch:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]


def ended(client: OpenAI, batch: Batch) -> Batch:
    found = batch

    def over() -> bool:
        nonlocal found
        found = client.batches.retrieve(batch.id)
        return found.status in ("completed", "failed", "cancelled")

    wait_until(over)
    return found


def results(client: OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    assert file_id is not None
    lines = client.files.content(file_id).text.splitlines()
    return {told["custom_id"]: told for told in map(json.loads, lines)}


@pytest.fixture
def served(scripted: Start) -> Iterator[tuple[ScriptedEngine, OpenAI]]:
    """A server that always says yes."""
    engine, http = scripted(answering("Yes."))
    with OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        yield engine, client


def test_a_batch_is_answered_as_the_requests_would_be(openai: OpenAI) -> None:
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    batch = begin(openai, jsonl(line("a", **greedy), line("b", "Why?", **greedy), line("c", n=0)))
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    over = ended(openai, batch)
    assert over.status == "completed"
    assert over.request_counts is not None
    assert over.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert over.in_progress_at is not None
    assert over.completed_at is not None
    told = results(openai, over.output_file_id)
    assert set(told) == {"a", "b"}
    for custom_id, content in (("a", "Hello"), ("b", "Why?")):
        assert told[custom_id]["response"]["status_code"] == 200
        answer = ChatCompletion.model_validate(told[custom_id]["response"]["body"])
        alone = openai.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": content}], extra_body=greedy
        )
        assert answer.choices[0].message.content == alone.choices[0].message.content
    (failed,) = results(openai, over.error_file_id).values()
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["param"] == "n"


def test_completions_have_batches_too(openai: OpenAI) -> None:
    over = ended(openai, begin(openai, jsonl(line("a", url=COMPLETIONS, max_tokens=3)), COMPLETIONS))
    (told,) = results(openai, over.output_file_id).values()
    assert told["response"]["body"]["object"] == "text_completion"
    assert over.error_file_id is None


def test_responses_have_batches_too(openai: OpenAI) -> None:
    given = {"model": NAME, "input": "Hello", "temperature": 0, "max_output_tokens": 6}
    asked = {"method": "POST", "url": RESPONSES}
    lines: list[dict[str, Any]] = [
        {"custom_id": "a", **asked, "body": given},
        {"custom_id": "b", **asked, "body": {**given, "previous_response_id": "resp_x"}},
        {"custom_id": "c", **asked, "body": {**given, "max_output_tokens": 0}},
    ]
    over = ended(openai, begin(openai, jsonl(*lines), RESPONSES))
    (told,) = results(openai, over.output_file_id).values()
    answer = Response.model_validate(told["response"]["body"])
    assert answer.output_text == openai.responses.create(**given).output_text  # type: ignore[call-overload]
    wrong = results(openai, over.error_file_id)
    params = {custom_id: each["response"]["body"]["error"]["param"] for custom_id, each in wrong.items()}
    assert params == {"b": "previous_response_id", "c": "max_output_tokens"}


def test_its_requests_are_background_work_of_their_key(scripted: Start) -> None:
    engine, http = scripted(answering("Yes."), keys=(Key.of("k"),))
    with OpenAI(base_url=f"{http.base_url}/v1", api_key="k", max_retries=0) as client:
        ended(client, begin(client, jsonl(line("a"))))
    assert engine.background
    assert engine.owners == [Key.of("k").name]


def test_each_mistake_of_a_file_is_told_with_its_line(served: tuple[ScriptedEngine, OpenAI]) -> None:
    engine, client = served
    lines: list[dict[str, Any] | str] = [
        "{",
        "",
        line("a"),
        line("a"),
        {**line("b"), "metod": 1},
        line("c", url=COMPLETIONS),
    ]
    over = ended(client, begin(client, jsonl(*lines)))
    assert over.status == "failed"
    assert over.errors is not None
    told = {error.line: error.message or "" for error in over.errors.data or []}
    assert told == {
        1: told[1],
        4: "line 4 has the custom_id 'a' of line 3; give each line its own.",
        5: "line 5 has the unknown field 'metod'; did you mean method?",
        6: f"line 6 has the url {COMPLETIONS}, but the batch is for {CHAT}.",
    }
    assert told[1].startswith("line 1 is not JSON")
    assert not engine.submitted
    assert ended(client, begin(client, b"\n \n")).status == "failed"


def test_a_request_that_meets_a_bug_costs_the_others_nothing(
    served: tuple[ScriptedEngine, OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, client = served
    whole = engine.submit_choices

    def submit(ids: Any, choices: Any, **more: Any) -> Any:
        if "bug" in engine.text.tokenizer.decode(ids):
            raise ZeroDivisionError
        return whole(ids, choices, **more)

    monkeypatch.setattr(engine, "submit_choices", submit)
    over = ended(client, begin(client, jsonl(line("a", "bug"), line("b"))))
    assert set(results(client, over.output_file_id)) == {"b"}
    (failed,) = results(client, over.error_file_id).values()
    assert failed["response"]["status_code"] == 500
    assert "ZeroDivision" not in json.dumps(failed)


def patient(folder: Path) -> ScriptedEngine:
    """Answers when it is let go."""

    def script(_prompt: str, sampling: SamplingParams) -> list[TokenEvent | threading.Event]:
        return [engine.go, *engine.spell("Yes.", sampling)]

    engine = ScriptedEngine(folder, script)
    return engine


def test_a_batch_that_is_cancelled_ends_soon_with_what_it_has(scripted: Start) -> None:
    engine, http = scripted(patient)
    with OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        batch = begin(client, jsonl(*(line(str(number)) for number in range(9))))
        wait_until(lambda: len(engine.alive) == 4)  # the most at a time
        client.batches.cancel(batch.id)
        over = ended(client, batch)
        assert over.status == "cancelled"
        wait_until(lambda: not engine.alive)
        assert over.request_counts is not None
        assert over.request_counts.model_dump() == {"total": 9, "completed": 0, "failed": 0}
        codes = {told["error"]["code"] for told in results(client, over.error_file_id).values()}
        assert codes == {"batch_cancelled"}
        assert client.batches.cancel(batch.id).status == "cancelled"


def test_nothing_is_begun_while_somebody_waits(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, http = scripted(answering("Yes."))
    stats = engine.stats
    waiting = 1
    monkeypatch.setattr(engine, "stats", lambda: type(stats())(**{**vars(stats()), "waiting": waiting}))
    with OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        batch = begin(client, jsonl(line("a")))
        with pytest.raises(AssertionError):
            wait_until(lambda: bool(engine.submitted), 0.6)
        assert client.batches.retrieve(batch.id).status == "in_progress"
        waiting = 0
        assert ended(client, batch).status == "completed"


def test_keys_share_the_places(scripted: Start) -> None:
    engine, http = scripted(patient, keys=(Key.of("one"), Key.of("two")))
    for key in ("one", "two"):
        with OpenAI(base_url=f"{http.base_url}/v1", api_key=key, max_retries=0) as client:
            begin(client, jsonl(*(line(str(number)) for number in range(8))))
    wait_until(lambda: len(engine.alive) == 4)
    before = len(engine.owners)
    engine.go.set()
    wait_until(lambda: len(engine.owners) == 16)
    later = engine.owners[before:]
    assert abs(later[:8].count(Key.of("one").name) - later[:8].count(Key.of("two").name)) <= 4
    assert {*later} == {Key.of("one").name, Key.of("two").name}


def test_files_are_listed_read_and_deleted_by_their_owner_alone(scripted: Start) -> None:
    _, http = scripted(answering("Yes."), keys=(Key.of("one"), Key.of("two")))
    with (
        OpenAI(base_url=f"{http.base_url}/v1", api_key="one", max_retries=0) as one,
        OpenAI(base_url=f"{http.base_url}/v1", api_key="two", max_retries=0) as two,
    ):
        files = [one.files.create(file=(f"{name}.jsonl", b"{}"), purpose="batch") for name in "abc"]
        assert (files[0].filename, files[0].bytes, files[0].status) == ("a.jsonl", 2, "processed")
        newest = [file.id for file in one.files.list()]
        assert newest == [file.id for file in reversed(files)]
        page = one.files.list(limit=2, order="asc")
        assert ([file.id for file in page.data], page.has_more) == ([files[0].id, files[1].id], True)
        assert [file.id for file in one.files.list(after=newest[1])] == newest[2:]
        assert one.files.list(purpose="batch_output").data == []
        assert two.files.list().data == []
        for ask in (two.files.retrieve, two.files.content, two.files.delete):
            with pytest.raises(sdk.NotFoundError, match=f"There is no file '{files[0].id}' of this key"):
                ask(files[0].id)
        assert one.files.retrieve(files[0].id).created_at == files[0].created_at
        assert one.files.delete(files[0].id).deleted
        with pytest.raises(sdk.NotFoundError):
            one.files.content(files[0].id)
        with pytest.raises(sdk.NotFoundError):
            two.batches.create(input_file_id=files[1].id, endpoint=CHAT, completion_window="24h")
        batch = begin(one, jsonl(line("a")))
        with pytest.raises(sdk.NotFoundError):
            two.batches.retrieve(batch.id)
        assert [each.id for each in one.batches.list()] == [batch.id]
        assert two.batches.list().data == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"purpose": "assistants"}, "purpose is 'assistants'; it should be 'batch'"),
        ({}, "purpose is missing"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}, "seconds is 5"),
        ({"purpose": "batch", "expires_after[seconds]": "7200"}, "expires_after"),
    ],
)
def test_a_form_that_is_wrong_is_refused_by_field(http: httpx.Client, fields: dict[str, str], sentence: str) -> None:
    answer = http.post("/v1/files", data=fields, files={"file": ("in.jsonl", b"{}")})
    assert answer.status_code == 400, answer.text
    assert sentence in answer.json()["error"]["message"]


def test_what_is_no_form_or_too_large_is_refused(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    form = {"purpose": "batch"}
    for sent in ({"json": form}, {"data": form}, {"data": form, "files": {"file": ("x", b"")}}):
        answer = http.post("/v1/files", **sent)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file"), answer.text
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/files", content=b"--x\r\nnonsense", headers=broken).status_code == 400
    assert http.post("/v1/files", content=b"--x", headers={"content-type": "multipart/form-data"}).status_code == 400
    monkeypatch.setattr(module, "MOST_UPLOADED", 1000)
    large = b"x" * 100_000
    told = http.post("/v1/files", data=form, files={"file": ("x", large)})
    assert (told.status_code, told.json()["error"]["code"]) == (413, "request_too_large")

    def pieces() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        yield large

    assert http.post("/v1/files", content=pieces(), headers=broken).status_code == 413  # its length was not announced
    assert http.get("/v1/files?limit=0").json()["error"]["param"] == "limit"
    assert http.get("/v1/files?order=up").json()["error"]["param"] == "order"
    assert http.get("/v1/batches?after=nothing").json()["error"]["param"] == "after"


def test_what_goes_with_the_server_is_said_to(scripted: Start, tmp_path: Path) -> None:
    for store, told in ((None, "files and batches go with this server"), (Store(tmp_path / "kept"), "")):
        _, http = scripted(answering("Yes."), store=store)
        answer = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("x", jsonl(line("a")))})
        begun = http.post(
            "/v1/batches", json={"input_file_id": answer.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        )
        for each in (answer, begun):
            assert each.headers.get("x-qwench-warnings", "").startswith(told)
            assert bool(each.headers.get("x-qwench-warnings")) == bool(told)


def test_a_file_may_expire(openai: OpenAI) -> None:
    file = openai.files.create(
        file=("x", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert 3595 <= file.expires_at - file.created_at <= 3605


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"input_file_id": "file-0"}, "file_id"),
        ({"input_file_id": None}, "input_file_id"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_by_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", **fields}
    answer = http.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404 if param == "file_id" else 400, param)


def test_a_server_that_ends_goes_on_when_it_starts_again(text_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    slow = patient(text_folder)
    with keeping(slow, path) as client:
        batch = begin(client, jsonl(*(line(str(number)) for number in range(5))))
        wait_until(lambda: len(slow.alive) == 4)
    with keeping(answering("Yes.")(text_folder), path) as client:
        over = ended(client, batch)
        assert set(results(client, over.output_file_id)) == set(map(str, range(5)))


@contextmanager
def keeping(engine: ScriptedEngine, path: Path) -> Iterator[OpenAI]:
    """A client of a server that keeps its batches at ``path``."""
    with (
        running(engine, engine.text, ServerSettings(names=(NAME,), store=Store(path))) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], OpenAI]]:
    """A server of its own process, and a client of it."""
    with (
        serve(*arguments) as process,
        OpenAI(base_url=f"{address_of(process)}/v1", api_key="none", max_retries=0) as client,
    ):
        yield process, client


@pytest.mark.slow
def test_a_server_that_is_killed_goes_on_when_it_starts_again(tmp_path: Path) -> None:
    lines = jsonl(*(line(str(number), max_tokens=64, ignore_eos=True) for number in range(40)))
    lines = lines.replace(b'"model": "tiny"', b'"model": "nano"')
    store = ("--store", str(tmp_path / "kept"), "--port", "0")
    with started(*store) as (process, client):
        batch = begin(client, lines)

        def some() -> bool:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed >= 3

        wait_until(some, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with started(*store) as (_, client):
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
        over = client.batches.retrieve(batch.id)
        assert set(results(client, over.output_file_id)) == set(map(str, range(40)))

"""The offline batch: OpenAI's format in and out, mistakes named by line, a run that goes on after any kind of end."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from qwench import cli
from qwench.engine.request import SamplingParams, TokenEvent
from qwench.errors import OutputError, RequestError, UsageError
from qwench.text.tokenizer import Tokenizer
from tests.cli.conftest import Install

CHAT = "/v1/chat/completions"


def request(custom_id: str, content: str = "Hi", url: str = CHAT, **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": content}]} if url == CHAT else {"prompt": content}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **asked, **fields}}


def write(path: Path, lines: Iterable[dict[str, Any] | str]) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def generate(source: Path, target: Path, model: Path | str = "m") -> int:
    return cli.main(["generate", str(model), str(source), "-o", str(target)])


def test_a_budget_bounds_the_chats_that_say_nothing_of_thinking(scripted: Install, files: tuple[Path, Path]) -> None:
    engine = scripted("Yes.")
    source, target = files
    requests = [
        request("a"),
        request("b", think=False),
        request("c", "x", "/v1/completions"),
        request("d", think="low"),
    ]
    write(source, requests)
    assert cli.main(["generate", "m", str(source), "-o", str(target), "--think-budget", "64"]) == 0
    by_prompt = sorted((rules.open, rules.budget) for rules in engine.rules if rules is not None)
    assert by_prompt == [(False, 0), (True, 64), (True, 1024)]
    assert engine.rules.count(None) == 1
    target.unlink()
    assert cli.main(["generate", "m", str(source), "-o", str(target), "--think-budget", "-1"]) == UsageError.exit_code


def test_results_are_what_the_openai_client_reads(
    checkpoint: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    requests = [request("a", max_tokens=4, temperature=0), request("b", "x", "/v1/completions", max_tokens=3, n=2)]
    assert generate(write(source, requests), target, checkpoint) == 0
    results = {result["custom_id"]: result for result in read(target)}
    assert set(results) == {"a", "b"}
    for result in results.values():
        assert set(result) == {"id", "custom_id", "response", "error"}
        assert result["id"].startswith("batch_req_")
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
    chat = ChatCompletion.model_validate(results["a"]["response"]["body"])
    assert chat.usage is not None
    assert chat.usage.completion_tokens <= 4
    assert len(Completion.model_validate(results["b"]["response"]["body"]).choices) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "2 of 2 requests answered" in told.err
    assert "tokens/s" in told.err


def test_many_requests_each_get_their_own_answer(scripted: Install, files: tuple[Path, Path]) -> None:
    source, target = files
    engine = scripted(lambda prompt, sampling: engine.spell(str(prompt.count("x")), sampling))
    write(source, [request(f"id {count}", "x" * count) for count in range(150)])
    assert generate(source, target) == 0
    contents = {
        result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"] for result in read(target)
    }
    assert contents == {f"id {count}": str(count) for count in range(150)}
    assert not engine.alive


BROKEN = [
    ("{", None, "line 2 is not JSON"),
    ("[1]", None, "line 2 is not a JSON object"),
    ({"url": CHAT, "body": {}}, None, "line 2 has no custom_id"),
    (request("good"), "good", "line 2 has the custom_id 'good' of line 1"),
    (request("b") | {"metod": "POST"}, "b", "unknown field 'metod'; did you mean method?"),
    (request("b") | {"method": "GET"}, "b", "line 2 has the method 'GET'; only POST"),
    (request("b", url="/v1/chat/completion"), "b", "did you mean /v1/chat/completions?"),
    (request("b", url="/v1/embeddings"), "b", "line 2 has the url '/v1/embeddings'"),
    (request("b") | {"body": "x"}, "b", "line 2 has no body"),
    (request("b") | {"custom_id": float("nan")}, None, "line 2 has no custom_id"),
]


@pytest.mark.parametrize(("line", "custom_id", "sentence"), BROKEN)
def test_a_broken_line_is_named_and_the_others_run(
    scripted: Install, files: tuple[Path, Path], line: Any, custom_id: str | None, sentence: str
) -> None:
    source, target = files
    scripted("fine")
    assert generate(write(source, [request("good"), line, "", request("last")]), target) == RequestError.exit_code
    results = read(target)
    answered = {result["custom_id"] for result in results if result["response"]}
    assert answered == {"good", "last"}
    (failed,) = [result for result in results if result["error"]]
    assert failed["custom_id"] == custom_id
    assert failed["response"] is None
    assert sentence in failed["error"]["message"]


def test_bytes_that_are_no_text_are_named(scripted: Install, files: tuple[Path, Path]) -> None:
    source, target = files
    scripted("fine")
    source.write_bytes(b'{"custom_id": "\xff"}\n' + json.dumps(request("a")).encode() + b"\n")
    assert generate(source, target) == RequestError.exit_code
    assert {result["custom_id"]: bool(result["error"]) for result in read(target)} == {None: True, "a": False}
    assert "line 1 is not UTF-8 at byte 15" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"stream": True}, "stream"),
        ({"n": 0}, "n"),
    ],
)
def test_a_refused_request_has_the_servers_answer(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], fields: dict[str, Any], param: str
) -> None:
    source, target = files
    scripted("fine")
    assert generate(write(source, [request("bad", **fields), request("good")]), target) == RequestError.exit_code
    results = {result["custom_id"]: result["response"] for result in read(target)}
    assert results["good"]["status_code"] == 200
    assert results["bad"]["status_code"] == 400
    assert results["bad"]["body"]["error"]["param"] == param
    assert "1 of 2 requests failed" in capsys.readouterr().err


def test_a_bug_that_one_line_meets_costs_only_that_line(
    scripted: Install, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = files
    scripted("fine")
    encode = Tokenizer.encode

    def failing(self: Tokenizer, text: str) -> list[int]:
        if "bang" in text:
            raise ZeroDivisionError("a bug")
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", failing)
    monkeypatch.setattr("qwench.log.configure", lambda: None)  # caplog listens at the root
    assert generate(write(source, [request("a"), request("b", "bang"), request("c")]), target) == RequestError.exit_code
    results = {result["custom_id"]: result["response"] for result in read(target)}
    assert {name: each["status_code"] for name, each in results.items()} == {"a": 200, "b": 500, "c": 200}
    assert results["b"]["body"]["error"]["code"] == "internal_error"
    assert "ZeroDivisionError: a bug" in caplog.text
    assert "line 2 failed" in caplog.text


def test_ignored_fields_are_said_once(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    scripted("fine")
    assert generate(write(source, [request("a", verbosity="low"), request("b", verbosity="low")]), target) == 0
    assert capsys.readouterr().err.count("verbosity: ignored") == 1


def test_what_is_answered_is_not_asked_again(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    engine = scripted("fine")
    requests: list[Any] = [request("a"), request("b", temperature=-1), request("c"), "{"]
    assert generate(write(source, requests), target) != 0
    first = {result["custom_id"]: result for result in read(target) if result["custom_id"] in {"a", "c"}}
    with target.open("a", encoding="utf-8") as file:
        file.write('{"id":"batch_req_12')  # as a kill in the middle of a write leaves it
    asked = len(engine.submitted)
    assert generate(write(source, [request("a"), request("b"), request("c"), request("d")]), target) == 0
    assert len(engine.submitted) == asked + 2
    results = read(target)
    assert sorted(result["custom_id"] for result in results) == ["a", "b", "c", "d"]
    assert {result["custom_id"]: result for result in results if result["custom_id"] in {"a", "c"}} == first
    assert "4 requests answered, 2 were there before" in capsys.readouterr().err
    before = target.read_bytes()
    assert generate(source, target, "/no/such/model") == 0  # nothing to do: no model is needed
    assert "all 4 requests are answered already" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert not list(target.parent.glob("*.part"))


def test_a_killed_run_goes_on(checkpoint: Path, files: tuple[Path, Path]) -> None:
    source, target = files
    write(source, [request(str(number), max_tokens=24, ignore_eos=True) for number in range(60)])
    command = [sys.executable, "-m", "qwench", "generate", str(checkpoint), str(source), "-o", str(target)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    process = subprocess.Popen([*command, "--max-num-seqs", "2"], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (not target.exists() or target.read_bytes().count(b"\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = target.read_bytes().split(b"\n")[:-1]
    assert 3 <= len(kept) < 60
    assert generate(source, target, checkpoint) == 0
    assert target.read_bytes().split(b"\n")[: len(kept)] == kept
    assert sorted(int(result["custom_id"]) for result in read(target)) == list(range(60))


def test_a_file_that_is_no_result_is_left_alone(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    engine = scripted("fine")
    write(source, [request("a")])
    for content in ("my diary\n", "my diary", '{"id": 1}\n', '{"id":"x'):
        target.write_text(content, encoding="utf-8")
        assert generate(source, target) == OutputError.exit_code
        assert target.read_text(encoding="utf-8") == content
        assert "line 1 of" in capsys.readouterr().err
    assert engine.submitted == []
    assert not list(target.parent.glob("*.part"))


def test_a_full_disk_is_one_sentence(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = files
    engine = scripted("fine")
    write(source, [request(str(number)) for number in range(5)])
    assert generate(source, Path("/dev/full")) == OutputError.exit_code
    told = capsys.readouterr().err
    assert "/dev/full cannot take more results: the disk is full. The 0 written in this run are kept" in told
    assert "Traceback" not in told
    assert not engine.alive


def test_results_written_before_the_disk_was_full_are_kept(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    scripted("fine")
    write(source, [request(str(number)) for number in range(12)])
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # bytes of any file this process writes
    try:
        code = generate(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    kept = read(target)  # whole lines only
    assert code == OutputError.exit_code
    assert 1 <= len(kept) < 12
    told = capsys.readouterr().err
    assert f"cannot take more results: file too large. The {len(kept)} written in this run are kept" in told
    assert generate(source, target) == 0
    assert read(target)[: len(kept)] == kept
    assert len(read(target)) == 12


def test_an_interrupt_says_how_to_go_on(
    scripted: Install, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    main = threading.main_thread().ident
    assert main is not None

    def script(prompt: str, sampling: SamplingParams) -> Iterable[Any]:
        if "wait" not in prompt:
            return engine.spell("fine", sampling)
        return [threading.Event(), TokenEvent(finish_reason="stop")]

    engine = scripted(script)
    write(source, [request("a"), request("b", "wait")])

    def interrupt() -> None:
        while not target.exists() or not target.stat().st_size:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert generate(source, target) == cli.INTERRUPTED
    assert "interrupted after 1 results; the same command goes on" in capsys.readouterr().err
    assert [result["custom_id"] for result in read(target)] == ["a"]
    assert not engine.alive


def test_an_engine_that_ends_ends_the_batch(scripted: Install, files: tuple[Path, Path]) -> None:
    source, target = files

    def script(_prompt: str, _sampling: SamplingParams) -> Iterable[TokenEvent]:
        engine.close()
        return [TokenEvent(finish_reason="error", error="broken")]

    engine = scripted(script)
    assert generate(write(source, [request(str(number)) for number in range(100)]), target) == 9
    assert read(target) == []
    assert len(engine.submitted) < 100


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "in.jsonl cannot be read (No such file"), ("\n\n", "in.jsonl has no requests")],
)
def test_an_input_without_requests(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
) -> None:
    source, target = files
    if content is not None:
        source.write_text(content, encoding="utf-8")
    assert generate(source, target) == UsageError.exit_code
    assert sentence in capsys.readouterr().err
    assert not target.exists()


def test_the_output_is_not_the_input_and_must_be_writable(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = files
    write(source, [request("a")])
    assert generate(source, source) == UsageError.exit_code
    assert "the input is also the output" in capsys.readouterr().err
    assert read(source) == [request("a")]
    assert generate(source, target.parent / "no" / "out.jsonl") == OutputError.exit_code
    assert "cannot be written (No such file or directory); give another file with -o" in capsys.readouterr().err

"""The chat command: one answer or a conversation, data apart from everything else, and nothing ends it by accident."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qwench import cli
from qwench.cli.chat import Chat, converse
from qwench.cli.terminal import Terminal
from qwench.engine.request import SamplingParams, TokenEvent
from qwench.errors import ContextLengthExceeded, EngineUnavailable, RequestError, TemplateError, UsageError
from tests.cli.conftest import Install, Scripted

Capsys = pytest.CaptureFixture[str]
THOUGHT = "I see.\n</think>\n\nForty-two."
SOURCE = Path(cli.__file__).parents[2]


def test_the_answer_is_data_and_the_rest_is_not(scripted: Install, capsys: pytest.CaptureFixture[str]) -> None:
    engine = scripted(THOUGHT)
    assert cli.main(["chat", "m", "-p", "What?", "--think", "--system", "Be brief."]) == 0
    told = capsys.readouterr()
    assert told.out == "Forty-two.\n"
    assert "[thinking] I see.\n[/thinking]\n" in told.err
    assert " of them thinking; " in told.err
    assert "tokens/s, first after" in told.err
    assert "\x1b" not in told.out + told.err
    assert engine.prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>")
    assert not engine.alive


def test_a_budget_goes_to_the_engine_and_its_end_is_told(scripted: Install, capsys: pytest.CaptureFixture[str]) -> None:
    engine = scripted(
        lambda _prompt, sampling: [
            TokenEvent(tuple(engine.text.tokenizer.encode(THOUGHT)), closed_by="soft"),
            TokenEvent(finish_reason="stop", closed_by="soft"),
        ]
    )
    assert cli.main(["chat", "m", "-p", "What?", "--think-budget", "64", "--json"]) == 0
    told = capsys.readouterr()
    assert engine.prompts[0].endswith("<think>\n")
    assert engine.rules[0] is not None
    assert engine.rules[0].budget == 64
    assert "of them thinking (closed at the budget); " in told.err
    assert json.loads(told.out)["thinking_closed_by"] == "soft"
    assert cli.main(["chat", "m", "-p", "What?", "--think-budget", "0"]) == 0
    assert engine.prompts[1].endswith("<think>\n\n</think>\n\n")


def test_no_think_closes_the_block(scripted: Install, capsys: pytest.CaptureFixture[str]) -> None:
    engine = scripted("Hi.\n")
    assert cli.main(["chat", "m", "-p", "x", "--no-think"]) == 0
    assert engine.prompts[0].endswith("<think>\n\n</think>\n\n")
    told = capsys.readouterr()
    assert told.out == "Hi.\n"
    assert "thinking" not in told.err


@pytest.mark.parametrize("arguments", [["-p", "-"], []])
def test_a_prompt_may_be_piped_in(
    scripted: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    engine = scripted("Hi.")
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert cli.main(["chat", "m", *arguments]) == 0
    assert "user\nfrom a pipe<|im_end|>" in engine.prompts[0]
    assert capsys.readouterr().out == "Hi.\n"


def test_json_is_one_document_on_the_last_line(scripted: Install, capsys: pytest.CaptureFixture[str]) -> None:
    engine = scripted(THOUGHT)
    arguments = ["--json", "--think", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--seed", "7"]
    assert cli.main(["chat", "m", "-p", "x", *arguments, "--max-tokens", "50"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert document["content"] == "Forty-two."
    assert document["reasoning_content"] == "I see."
    assert document["finish_reason"] == "stop"
    assert document["thinking"] is True
    usage = document["usage"]
    assert usage["prompt_tokens"] == len(engine.text.tokenizer.encode(engine.prompts[0]))
    assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"]
    wanted = SamplingParams(temperature=0.5, top_p=0.9, top_k=3, seed=7, max_tokens=50)
    assert engine.submitted == [wanted]
    assert document["sampling"] == {name: getattr(wanted, name) for name in document["sampling"]}


@pytest.mark.parametrize(
    ("script", "limit", "complaint"),
    [
        ("thinking and thinking and thinking", "3", "thinking took all tokens and left no answer; raise --max-tokens"),
        ("a</think>one two three four five six", "7", "the answer was cut: --max-tokens is reached"),
        ("a</think>", "50", "the model ended without an answer"),
    ],
)
def test_an_answer_that_is_none_says_so(
    scripted: Install, capsys: pytest.CaptureFixture[str], script: str, limit: str, complaint: str
) -> None:
    scripted(script)
    assert cli.main(["chat", "m", "-p", "x", "--think", "--max-tokens", limit]) == 0
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", ""], "the prompt is empty; give a text with -p"),
        (["-p", "x", "--think-budget", "-9"], "--think-budget is -9; give a number of tokens from 0"),
        (["-p", "x", "--image", "a.png"], "--image: this model reads text only; run one that has eyes"),
        (["-p", "x", "--max-pixels", "0"], "--max-pixels is 0; give a whole number from 1"),
        (["-p", "x", "--min-pixels", "9", "--max-pixels", "8"], "--min-pixels is 9, more than max_pixels (8)"),
        (["-p", "x", "--think", "--no-think"], "not allowed with argument --think"),
        (["-p", "x", "--temprature", "1"], "has no flag --temprature; did you mean --temperature?"),
        (["-p", "x", "--memory", "much"], "--memory is 'much'; give bytes, or a size such as 2GiB"),
    ],
)
def test_wrong_flags_are_told(
    scripted: Install, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    engine = scripted("Hi.")
    assert cli.main(["chat", "m", *arguments]) == UsageError.exit_code
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.out == ""
    assert engine.submitted == []


def test_bytes_that_are_no_text_are_told(
    scripted: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted("Hi.")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    assert cli.main(["chat", "m"]) == UsageError.exit_code
    assert "standard input is not UTF-8 at byte 2" in capsys.readouterr().err


def test_a_missing_template_is_told_before_loading(text_folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    for path in text_folder.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert cli.main(["chat", str(tmp_path), "-p", "x"]) == TemplateError.exit_code
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "-1", "1000"])
def test_wrong_sampling_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert cli.main(["chat", "/no/such/model", "-p", "x", "--temperature", value]) == RequestError.exit_code
    assert "temperature is " in capsys.readouterr().err


def test_json_needs_a_prompt_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Screen())
    assert cli.main(["chat", "m", "--json"]) == UsageError.exit_code
    assert "--json needs a prompt" in capsys.readouterr().err


class Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(colour: bool = True) -> str:
    out, notes = (Screen(), Screen()) if colour else (io.StringIO(), io.StringIO())
    terminal = Terminal(out, notes)
    for kind, text in (("reasoning", "a"), ("reasoning", "b"), ("content", "c\x1b[31m"), ("content", "\x9b\td")):
        terminal.write(kind, text)
    terminal.end()
    terminal.note("n")
    return f"{out.getvalue()}|{notes.getvalue()}"


def test_a_terminal_is_dimmed_and_never_obeys_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown() == "c\ufffd[31m\ufffd\td\n|\x1b[2m[thinking] ab\x1b[0m\n[/thinking]\n\x1b[2mn\x1b[0m\n"
    assert shown(colour=False) == "c\x1b[31m\x9b\td\n|[thinking] ab\n[/thinking]\nn\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == "c\ufffd[31m\ufffd\td\n|[thinking] ab\n[/thinking]\nn\n"


def test_letters_that_the_stream_cannot_hold_do_not_end_the_answer() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal = Terminal(out, io.StringIO())
    terminal.write("content", "é👍")
    terminal.end()
    assert out.buffer.getvalue() == b"??\n"


Turn = str | type[BaseException]


def talk(engine: Scripted, *turns: Turn, **options: Any) -> tuple[Chat, str, str]:
    """A conversation in which the user types ``turns`` (an exception is a key such as Ctrl-C), then ends the input."""
    out, notes = io.StringIO(), io.StringIO()
    chat = Chat(engine, engine.text, Terminal(out, notes), **options)
    waiting = [*turns, EOFError]

    def read(_prompt: str) -> str:
        turn = waiting.pop(0)
        if isinstance(turn, str):
            return turn
        raise turn

    converse(chat, read)
    return chat, out.getvalue(), notes.getvalue()


def test_a_conversation_remembers_and_forgets(scripted: Install) -> None:
    engine = scripted("<think>\nhm\n</think>\n\nYes.")
    chat, out, _ = talk(engine, "one", "  ", "two", "/clear", "three", system="Short.")
    assert out == "Yes.\n" * 3
    head = "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\n"
    said = "one<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n"
    assert engine.prompts[1].startswith(head + said)
    assert engine.prompts[2].startswith(f"{head}three<|im_end|>\n<|im_start|>assistant\n")
    assert chat.messages == [
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"},
    ]


def test_the_commands(scripted: Install) -> None:
    engine = scripted("</think>Yes.")
    turns = ("/help", "/think", "a", "/no-think", "b", "/thnik", "//c", "d\\", "e", "/exit", "never")
    _, _, notes = talk(engine, *turns)
    assert "/no-think    answer at once" in notes
    assert engine.prompts[0].endswith("user\na<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert engine.prompts[1].endswith("</think>\n\n")
    assert "there is no command /thnik; did you mean /think?" in notes
    assert "user\n/c<|im_end|>" in engine.prompts[2]
    assert "user\nd\ne<|im_end|>" in engine.prompts[3]
    assert len(engine.prompts) == 4


def test_an_interrupt_ends_the_answer_and_keeps_what_was_said(scripted: Install) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def script(prompt: str, sampling: SamplingParams) -> Iterable[Any]:
        if "long" not in prompt or "again" in prompt:
            yield from engine.spell("Done.", sampling)
            return
        yield from engine.spell("So far", sampling)[:-1]
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)
        yield threading.Event()
        yield TokenEvent(finish_reason="stop")

    engine = scripted(script)
    chat, out, notes = talk(engine, KeyboardInterrupt, "long", "again")
    assert "(Ctrl-D or /exit leaves)" in notes
    assert "(interrupted)" in notes
    assert out == "So far\nDone.\n"
    assert "assistant\nSo far<|im_end|>\n<|im_start|>user\nagain" in engine.prompts[1]
    assert len(chat.messages) == 4
    assert not engine.alive


def test_a_failed_answer_does_not_end_the_conversation(scripted: Install) -> None:
    def script(prompt: str, sampling: SamplingParams) -> Iterable[Any]:
        if "too long" in prompt:
            raise ContextLengthExceeded("the prompt has 9 tokens, but the window is 8.")
        if "bad" in prompt:
            return [TokenEvent(finish_reason="error", error="out of memory")]
        return engine.spell("Fine.", sampling)

    engine = scripted(script)
    chat, out, notes = talk(engine, "too long", "bad", "good")
    assert "the prompt has 9 tokens, but the window is 8; /clear starts anew." in notes
    assert "the engine failed on this answer: out of memory" in notes
    assert out.strip() == "Fine."
    assert [message["content"] for message in chat.messages] == ["good", "Fine."]


def test_a_dead_engine_ends_it(scripted: Install) -> None:
    def script(_prompt: str, _sampling: SamplingParams) -> Iterable[Any]:
        engine.close()
        return [TokenEvent(finish_reason="error", error="closed")]

    engine = scripted(script)
    with pytest.raises(EngineUnavailable):
        talk(engine, "x", "y")


def test_in_a_real_terminal(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "qwench", "chat", str(checkpoint), "--temperature", "0", "--max-tokens", "5"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TERM": "xterm"}
    master, slave = pty.openpty()
    process = subprocess.Popen(command, env=environment, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    screen = bytearray()

    seen = 0  # what stands before was waited for already

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while (found := screen.find(text, seen)) < 0:
            assert time.monotonic() < deadline, screen.decode(errors="replace")
            if select.select([master], [], [], 0.1)[0]:
                screen.extend(os.read(master, 4096))
        seen = found + len(text)

    type_in: Callable[[bytes], int] = lambda text: os.write(master, text)  # noqa: E731
    try:
        until(b"> ")
        type_in(b"Hello\n")
        until(b"tokens/s")
        until(b"> ")
        type_in(b"/exit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"Traceback" not in screen
    assert b"device cpu" in screen

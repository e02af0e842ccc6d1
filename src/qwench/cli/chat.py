"""``qwench chat``: one answer with ``-p``, else a conversation in the terminal.

Answers go to standard output; the reasoning before them, dimmed, and everything else to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.engine import add_engine_flags, add_model_argument, not_yet, running
from qwench.cli.reasoning import Wish, add_reasoning_flags, consider, read_wish
from qwench.cli.terminal import Terminal
from qwench.errors import QwenchError, RequestError, UsageError
from qwench.reason import told

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient
    from qwench.engine.request import SamplingParams
    from qwench.text.model import ChatPrompt, ModelText
    from qwench.text.reading import ToolCall
    from qwench.text.thinking import ThinkingPlan
    from qwench.text.tools import Tools

SAMPLING_FLAGS = ("temperature", "top_p", "top_k", "max_tokens", "seed")
CUTS = {  # what ended the thinking where it was not the model alone
    "soft": "closed at the budget",
    "budget": "cut at the budget",
    "reserve": "cut to leave room for the answer",
    "loop": "cut because it went in circles",
    "end_of_turn": "closed where the model would have stopped",
}
HELP = """\
/think       think before answering
/no-think    answer at once
/clear       forget the conversation
/help        this list
/exit        leave (so does Ctrl-D)
Ctrl-C ends an answer. A line that ends with \\ goes on in the next; a text that begins with / is written with //."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="answer this and leave; - reads standard input")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument(
        "--tools", type=Path, metavar="FILE.json", help="functions the model may call, a list in OpenAI's form"
    )
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--think", action="store_true", help="think before answering")
    thinking.add_argument("--no-think", action="store_true", help="answer at once")
    thinking.add_argument(
        "--think-budget", type=int, metavar="N", help="think for at most about N tokens, then answer; 0 does not think"
    )
    parser.add_argument("--json", action="store_true", help="print the answer as one line of JSON")
    parser.add_argument("--image", action="append", metavar="FILE", help="a picture to look at (not available yet)")
    parser.add_argument("--video", metavar="FILE", help="a video to look at (not available yet)")
    group = parser.add_argument_group("sampling (the model's recommended values where not given)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token each time")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the tokens that make up this probability")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens, 0 for all")
    group.add_argument("--max-tokens", type=int, metavar="N", help="end the answer after N tokens, thinking included")
    group.add_argument("--seed", type=int, metavar="N", help="repeat the same draws")
    add_reasoning_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """One answer or a conversation. Raises QwenchError."""
    from qwench.engine.request import SamplingParams

    _check(args)
    overrides = {name: getattr(args, name) for name in SAMPLING_FLAGS if getattr(args, name) is not None}
    SamplingParams(**overrides)  # a wrong value is told before the model is loaded
    wish = read_wish(args)
    prompt = _single_prompt(args)
    thinking = _thinking(args)
    tools = None if args.tools is None else _tools(args.tools)
    if tools is not None and wish is not None:
        raise UsageError("--tools cannot be combined with many samples: a call is no vote.")
    with running(args, chat=True) as (client, text):
        chat = Chat(client, text, Terminal(), args.system, thinking, overrides, wish, tools)
        if prompt is None:
            converse(chat)
        elif args.json:
            reply = chat.answer(prompt, show=False)
            print(json.dumps(reply.document(client.name), ensure_ascii=False))
        else:
            chat.answer(prompt)
    return 0


def _tools(path: Path) -> Tools | None:
    """The functions in a file. Raises UsageError."""
    from qwench.text.tools import read_tools

    try:
        return read_tools(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--tools: {path} cannot be read as JSON ({error}).") from None
    except RequestError as error:
        raise UsageError(f"--tools: in {path}, {error.message}") from None


def _check(args: argparse.Namespace) -> None:
    if args.image or args.video:
        raise not_yet("--image" if args.image else "--video", "describe in words what is to be seen")


def _thinking(args: argparse.Namespace) -> ThinkingPlan:
    """What the flags want of thinking. Raises UsageError."""
    from qwench.text.thinking import read_thinking

    switch = True if args.think else False if args.no_think else None
    try:
        return read_thinking({"enable_thinking": switch, "thinking_budget": args.think_budget})
    except RequestError as error:
        raise UsageError(error.message.replace("thinking_budget", "--think-budget")) from None


def _single_prompt(args: argparse.Namespace) -> str | None:
    """The one prompt of this run, from the flag or from what is piped in; None means a conversation."""
    if args.prompt is None and sys.stdin.isatty():
        if args.json:
            raise UsageError("--json needs a prompt; give one with -p.")
        return None
    try:
        prompt = sys.stdin.read() if args.prompt in {None, "-"} else str(args.prompt)
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 at byte {error.start}; give text.") from None
    if not prompt.strip():
        raise UsageError("the prompt is empty; give a text with -p, or pipe one in.")
    return prompt


@dataclass
class Reply:
    """An answer with its measurements; seconds count from the submission."""

    thinking: bool
    prompt_tokens: int
    sampling: SamplingParams
    reasoning: str = ""
    content: str = ""
    tokens: int = 0
    reasoning_tokens: int = 0
    closed_by: str | None = None
    cached_tokens: int = 0
    finish_reason: str | None = None
    first_seconds: float = 0.0
    seconds: float = 0.0
    calls: list[ToolCall] = field(default_factory=list)
    report: dict[str, Any] | None = None  # how it was chosen, if from many

    @property
    def speed(self) -> float:
        """Tokens per second after the first, which comes with the prompt."""
        after = self.seconds - self.first_seconds
        return (self.tokens - 1) / after if self.tokens > 1 and after > 0 else 0.0

    def document(self, model: str) -> dict[str, Any]:
        """What --json prints."""
        sampled = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "repetition_penalty",
            "max_tokens",
            "seed",
        )
        return {
            "model": model,
            "content": self.content,
            "reasoning_content": self.reasoning or None,
            "finish_reason": self.finish_reason,
            "thinking": self.thinking,
            "thinking_closed_by": self.closed_by,
            "sampling": {name: getattr(self.sampling, name) for name in sampled},
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.tokens,
                "reasoning_tokens": self.reasoning_tokens,
            },
            "seconds": round(self.seconds, 4),
            "seconds_to_first_token": round(self.first_seconds, 4),
            "tokens_per_second": round(self.speed, 2),
            **({"tool_calls": self.call_documents()} if self.calls else {}),
            **({"reasoning_strategy": self.report} if self.report else {}),
        }

    def call_documents(self) -> list[dict[str, Any]]:
        return [call.document() for call in self.calls]

    def statistics(self) -> str:
        if self.report is not None:
            return f"{told.after(self.report)}; {self.seconds:.2f} s"
        thought = f", {self.reasoning_tokens} of them thinking" if self.reasoning_tokens else ""
        if self.closed_by in CUTS:
            thought += f" ({CUTS[self.closed_by]})"
        reused = f"; {self.cached_tokens} of {self.prompt_tokens} read before" if self.cached_tokens else ""
        return (
            f"{self.tokens} tokens{thought}; {self.speed:.1f} tokens/s, first after {self.first_seconds:.2f} s, "
            f"{self.seconds:.2f} s in all{reused}"
        )

    def complaint(self) -> str | None:
        """What the user should know about an answer that did not come to its end."""
        if self.finish_reason == "length" and not self.content.strip():
            return "thinking took all tokens and left no answer; raise --max-tokens or use --no-think"
        if self.finish_reason == "length":
            return "the answer was cut: --max-tokens is reached or the window is full"
        if self.finish_reason == "stop" and not self.content.strip():
            return "the model ended without an answer"
        return None


@dataclass
class Chat:
    """A conversation with one model. ``messages`` grows by each question that was answered, if only in part."""

    client: EngineClient
    text: ModelText
    terminal: Terminal
    system: str | None = None
    thinking: ThinkingPlan | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    wish: Wish | None = None  # to have answers chosen from many samples
    tools: Tools | None = None
    clock: Callable[[], float] = time.monotonic
    messages: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, question: str, *, show: bool = True) -> Reply:
        """Stream the answer to ``question``. An interrupt ends it, keeps what was said, and is raised again."""
        return self._answer([{"role": "user", "content": question}], show)

    def go_on(self, results: Sequence[str], *, show: bool = True) -> Reply:
        """Stream what the model says to the results of its last calls."""
        calls = self.messages[-1]["tool_calls"]
        told = [
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ]
        return self._answer(told, show)

    def _answer(self, turns: list[dict[str, Any]], show: bool) -> Reply:
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*self.messages, *turns]
        offered = self.tools.offered if self.tools else None
        prompt = self.text.chat_prompt([*system, *asked], tools=offered, thinking=self.thinking)
        if self.wish is None:
            prompt = self.text.guided(prompt, self.tools, None)
        for warning in prompt.warnings:
            self.terminal.note(warning)
        sampling = self.text.sampling(prompt.thinks, self.overrides)
        reply = Reply(prompt.thinks, len(prompt.token_ids), sampling)
        try:
            if self.wish is None:
                self._stream(prompt, reply, show)
            else:
                self._consider([*system, *asked], self.wish, reply, show)
        finally:
            self.messages = asked
            said: dict[str, Any] = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
            said |= {"tool_calls": reply.call_documents()} if reply.calls else {}
            self.messages.append({"role": "assistant", "content": reply.content, **said})
            if show:
                self.terminal.end()
        if complaint := reply.complaint():
            self.terminal.note(complaint)
        self.terminal.note(reply.statistics())
        return reply

    def _consider(self, messages: list[dict[str, Any]], wish: Wish, reply: Reply, show: bool) -> None:
        """The answer that many samples come to, told when all is known."""
        start = self.clock()

        def render(turns: Sequence[Mapping[str, Any]]) -> ChatPrompt:
            return self.text.chat_prompt(turns, thinking=self.thinking)

        outcome = consider(self.client, self.text.tokenizer, wish.task(messages, render, reply.sampling), self.terminal)
        sample, reply.report = outcome.sample, outcome.report
        reply.seconds = reply.first_seconds = self.clock() - start
        reply.reasoning, reply.content, reply.finish_reason = sample.reasoning, sample.content, outcome.finish_reason
        reply.tokens, reply.reasoning_tokens = sample.tokens, sample.reasoning_tokens
        for kind, text in (("reasoning", sample.reasoning), ("content", sample.content)):
            if show and text:
                self.terminal.write(kind, text)

    def _stream(self, prompt: ChatPrompt, reply: Reply, show: bool) -> None:
        from qwench.text.marks import layout
        from qwench.text.reading import Reading

        tokenizer, opened = self.text.tokenizer, prompt.thinking_open
        reading = Reading(tokenizer, reply.sampling, thinking_open=opened, tools=self.tools)
        start = self.clock()
        marks = layout(prompt.token_ids, self.text.tokenizer).marks
        for event in self.client.submit(
            prompt.token_ids, reply.sampling, thinking=prompt.rules, marks=marks, guide=prompt.guide
        ):
            pieces = reading.take(event)
            reply.seconds = self.clock() - start
            if event.token_ids and not reply.tokens:
                reply.first_seconds = reply.seconds
            reply.tokens, reply.reasoning_tokens = reading.num_tokens, reading.reasoning_tokens
            reply.cached_tokens, reply.closed_by = reading.cached_tokens, reading.closed_by
            reply.finish_reason = reading.finish_reason
            for piece in pieces:
                if piece.call is not None:
                    continue
                if piece.kind == "reasoning":
                    reply.reasoning += piece.text
                else:
                    reply.content += piece.text
                if show:
                    self.terminal.write(piece.kind, piece.text)
        reply.calls = reading.calls
        for call in reply.calls if show else ():
            line = f"{call.name}({call.arguments})\n"
            self.terminal.write("content", f"\n{line}" if call is reply.calls[0] and reply.content else line)
        for warning in reading.warnings:
            self.terminal.note(warning)


def converse(chat: Chat, read: Callable[[str], str] | None = None) -> None:
    """The conversation: until the end of input or /exit."""
    if read is None:
        import readline  # noqa: F401  (line editing and history for input())

        read = input
    chat.terminal.note(f"{chat.client.name} is ready; /help lists the commands, Ctrl-D leaves")
    while True:
        try:
            line = _read_line(read)
        except EOFError:
            chat.terminal.note("")
            return
        except KeyboardInterrupt:
            chat.terminal.note("\n(Ctrl-D or /exit leaves)")
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not _command(chat, line.strip()):
                return
        elif line.strip():
            _reply(chat, line.removeprefix("/"), read)


def _read_line(read: Callable[[str], str]) -> str:
    line = read("> ")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n{read('. ')}"
    return line


def _reply(chat: Chat, question: str, read: Callable[[str], str]) -> None:
    """An answer whose failure does not end the conversation."""
    before = chat.messages
    try:
        reply = chat.answer(question)
        while reply.calls:
            reply = chat.go_on([read(f"{call.name} gives> ") for call in reply.calls])
    except (KeyboardInterrupt, EOFError):
        chat.terminal.note("(interrupted)")
    except QwenchError as error:
        if chat.client.status().state != "ready":
            raise
        chat.messages = before
        hint = "; /clear starts anew" if error.code == "context_length_exceeded" else ""
        chat.terminal.note(f"{error.message.rstrip('.')}{hint}.")


def _command(chat: Chat, line: str) -> bool:
    """Obey a line that begins with /. False means to leave."""
    known = ("/help", "/clear", "/think", "/no-think", "/exit", "/quit")
    if line in {"/exit", "/quit"}:
        return False
    if line == "/help":
        chat.terminal.note(HELP)
    elif line == "/clear":
        chat.messages = []
        chat.terminal.note("(the conversation is forgotten)")
    elif line in {"/think", "/no-think"}:
        from qwench.text.thinking import read_thinking

        chat.thinking = read_thinking({"enable_thinking": line == "/think"})
        chat.terminal.note("(it thinks before answering)" if line == "/think" else "(it answers at once)")
    else:
        nearest = get_close_matches(line, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "/help lists the commands."
        chat.terminal.note(f"there is no command {line.partition(' ')[0]}; {hint}")
    return True

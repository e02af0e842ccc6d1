"""``qwench generate``: a file of requests in OpenAI's batch format, answered offline into a file of results.

Each line is handled by the same code as a request to the server. A result is one whole line or none, so a run that was
killed goes on where it stopped: requests that have an answer in the output file are not asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.engine import add_engine_flags, add_model_argument, running
from qwench.cli.results import ResultFile
from qwench.errors import Overloaded, QwenchError, RequestError, UsageError
from qwench.fault import fault

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient
    from qwench.progress import Progress
    from qwench.server.answer import Answer
    from qwench.server.prepare import Prepared
    from qwench.server.service import Service
    from qwench.text.model import ModelText

URLS = ("/v1/chat/completions", "/v1/completions")
FIELDS = ("custom_id", "method", "url", "body")
IN_FLIGHT = 64  # requests read ahead of the engine, which has a queue of its own
TICK_SECONDS = 0.2

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="one request a line: custom_id, method, url, body")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT.jsonl",
        help="one result a line; what is answered there already is not asked again",
    )
    parser.add_argument(
        "--think-budget",
        type=int,
        metavar="N",
        help="think for at most about N tokens in chats that say nothing of thinking",
    )
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answer all requests. Raises RequestError at the end if some failed, OutputError if results cannot be written."""
    if args.think_budget is not None and args.think_budget < 0:
        raise UsageError(f"--think-budget is {args.think_budget}; give a number of tokens, 0 for no thinking.")
    total = _count_lines(args.input)
    if args.output.exists() and args.output.samefile(args.input):
        raise UsageError("the input is also the output; give another file with -o.")
    with ResultFile(args.output) as results:
        if _all_answered(args.input, results.answered):
            print(f"all {total} requests are answered already in {args.output}", file=sys.stderr)
            return 0
        return _run(args, results, total)


def _run(args: argparse.Namespace, results: ResultFile, total: int) -> int:
    from qwench.progress import clock_time

    with running(args) as (client, text):
        batch = Batch(client, text, args.input, results, args.think_budget)
        try:
            seconds = batch.run(total)
        except KeyboardInterrupt:
            print(f"interrupted after {results.written} results; the same command goes on from here", file=sys.stderr)
            raise
        finally:
            for warning in sorted(batch.warnings):
                print(f"qwench: {warning}", file=sys.stderr)
    before = f", {batch.skipped} were there before" if batch.skipped else ""
    print(
        f"{batch.answered} of {batch.seen} requests answered{before}; {batch.tokens} tokens in {clock_time(seconds)} "
        f"({batch.tokens / max(seconds, 1e-9):.1f} tokens/s) -> {args.output}",
        file=sys.stderr,
    )
    if batch.failed:
        raise RequestError(f"{batch.failed} of {batch.seen} requests failed; their lines in {args.output} say why.")
    return 0


@dataclass(frozen=True)
class Line:
    """One request of the input file."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(eq=False)
class Batch:
    """The work on one input file, and what came of it."""

    client: EngineClient
    text: ModelText
    source: Path
    results: ResultFile
    think_budget: int | None = None  # of chats that say nothing of thinking
    seen: int = 0
    answered: int = 0
    skipped: int = 0
    failed: int = 0
    tokens: int = 0
    warnings: set[str] = field(default_factory=set)
    running: set[Answer] = field(default_factory=set)

    def run(self, total: int) -> float:
        """Answer ``total`` lines and return the seconds it took."""
        from qwench.progress import Progress

        with Progress("Answering", total) as bar:
            asyncio.run(self._run(bar))
            return bar.seconds

    async def _run(self, bar: Progress) -> None:
        lines = self._lines()
        ticker = asyncio.create_task(self._tick(bar))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(IN_FLIGHT):
                    group.create_task(self._work(lines))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled because of it
        finally:
            ticker.cancel()
            self._show(bar)

    def _lines(self) -> Iterator[Line]:
        """The requests still to be answered; lines that are none become error results on the way."""
        ids: dict[str, int] = {}
        for number, raw in _raw_lines(self.source):
            self.seen += 1
            record: dict[str, Any] = {}
            try:
                record = _parse(raw, number)
                custom_id = _custom_id(record, number, ids)
                if custom_id in self.results.answered:
                    self.skipped += 1
                    continue
                yield _line(record, custom_id, number)
            except RequestError as error:
                told = record.get("custom_id")
                self._refuse(told if isinstance(told, str) else None, error)

    async def _work(self, lines: Iterator[Line]) -> None:
        for line in lines:
            await self._answer(line)

    async def _answer(self, line: Line) -> None:
        """One request to one result. The end of the engine ends the batch; any other failure is the request's own."""
        from qwench.server.errors import InternalError, error_body

        status = 200
        try:
            body = await self._body(line)
            self.answered += 1
        except QwenchError as error:
            if self.client.status().state != "ready":
                raise
            self.failed += 1
            status, body = error.status, error_body(error)
        except Exception:  # a bug that one request meets must not cost the others their answers
            logger.exception("line %d failed", line.number)
            self.failed += 1
            bug = InternalError(f"The request of line {line.number} met a bug; the log says where.")
            status, body = bug.status, error_body(bug)
        response = {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}
        self._write(line.custom_id, response, None)

    async def _body(self, line: Line) -> dict[str, object]:
        from qwench.server.answer import whole
        from qwench.server.chat import ChatFormat
        from qwench.server.completions import CompletionFormat
        from qwench.server.prepare import prepare_chat, prepare_completion
        from qwench.text.thinking import read_thinking

        chat = line.url == URLS[0]
        if line.body.get("stream"):
            raise RequestError("stream is true, but a batch has whole answers; leave it out.", param="stream")
        body = line.body
        if chat and self.think_budget is not None and not read_thinking(body).sources:
            body = {**body, "thinking_budget": self.think_budget}
        prepare = prepare_chat if chat else prepare_completion
        prepared = await asyncio.to_thread(prepare, body, self.text, (), self._service.eyes)
        self.warnings.update(prepared.warnings)
        answer = await self._submit(prepared)
        self.running.add(answer)
        try:
            head = self._service.head("chatcmpl-" if chat else "cmpl-")
            return await whole(answer, (ChatFormat if chat else CompletionFormat)(head, answer, self.text.tokenizer))
        finally:
            answer.abort()
            self.running.discard(answer)
            self.tokens += _tokens(answer)

    async def _submit(self, prepared: Prepared) -> Answer:
        """Requests of many choices fill the engine's queue for a moment; a batch has time."""
        from qwench.server.considered import answer_to

        while True:
            try:
                return answer_to(self.client, self.text, prepared)
            except Overloaded:
                await asyncio.sleep(TICK_SECONDS)

    @cached_property
    def _service(self) -> Service:
        from qwench.server.service import ServerSettings, Service

        return Service(self.client, self.text, ServerSettings(names=(self.client.name,)))

    def _refuse(self, custom_id: str | None, error: RequestError) -> None:
        self.failed += 1
        self._write(custom_id, None, {"code": error.code or error.type, "message": error.message})

    def _write(self, custom_id: str | None, response: dict[str, object] | None, error: dict[str, str] | None) -> None:
        result = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
        self.results.write(result)

    async def _tick(self, bar: Progress) -> None:
        while True:
            self._show(bar)
            await asyncio.sleep(TICK_SECONDS)

    def _show(self, bar: Progress) -> None:
        tokens = self.tokens + sum(map(_tokens, self.running))
        bar.skip(self.skipped)
        bar.update(self.skipped + self.answered + self.failed, f"{tokens / max(bar.seconds, 1e-9):.1f} tokens/s")


def _tokens(answer: Answer) -> int:
    return sum(choice.reading.num_tokens for choice in answer.choices)


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. Raises UsageError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                fault("read.requests")
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); give a file of requests, one JSON a line."
        ) from None


def _count_lines(path: Path) -> int:
    """How many requests the file holds. Raises UsageError if it cannot be read."""
    total = sum(1 for _ in _raw_lines(path))
    if not total:
        raise UsageError(f"{path} has no requests; give one JSON object a line.")
    return total


def _all_answered(path: Path, answered: set[str]) -> bool:
    """Whether there is nothing left to do, not even a broken line to be told; then no model is needed."""
    ids: dict[str, int] = {}
    for number, raw in _raw_lines(path):
        try:
            if _custom_id(_parse(raw, number), number, ids) not in answered:
                return False
        except RequestError:
            return False
    return True


def _parse(raw: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"line {number} is not UTF-8 at byte {error.start}; write it in UTF-8.") from None
    except RecursionError:
        raise RequestError(f"line {number} is nested too deeply; write flatter JSON.") from None
    except ValueError as error:
        raise RequestError(f"line {number} is not JSON ({error}); mend that line.") from None
    if not isinstance(record, dict):
        raise RequestError(f"line {number} is not a JSON object; write {{...}}.")
    return record


def _custom_id(record: dict[str, Any], number: int, ids: dict[str, int]) -> str:
    """The line's name, which no line before it may have."""
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise RequestError(f"line {number} has no custom_id; give each line a text of its own.", param="custom_id")
    first = ids.setdefault(custom_id, number)
    if first != number:
        raise RequestError(
            f"line {number} has the custom_id {custom_id!r} of line {first}; give each line its own.", param="custom_id"
        )
    return custom_id


def _line(record: dict[str, Any], custom_id: str, number: int) -> Line:
    for name in record:
        if name not in FIELDS:
            raise RequestError(f"line {number} has the unknown field {name!r}{_nearest(name, FIELDS)}", param=name)
    if record.get("method", "POST") != "POST":
        raise RequestError(f"line {number} has the method {record['method']!r}; only POST is possible.", param="method")
    url = record.get("url")
    if url not in URLS:
        raise RequestError(f"line {number} has the url {url!r}{_nearest(str(url), URLS)}", param="url")
    body = record.get("body")
    if not isinstance(body, dict):
        raise RequestError(f"line {number} has no body; give the request as a JSON object.", param="body")
    return Line(number, custom_id, url, body)


def _nearest(word: str, known: tuple[str, ...]) -> str:
    found = get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else f"; known are {', '.join(known)}."

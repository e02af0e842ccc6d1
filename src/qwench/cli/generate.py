"""``qwench generate``: a file of requests in OpenAI's batch format, answered offline into a file of results.

Each line is handled by the same code as a request to the server. A result is one whole line or none, so a run that was
killed goes on where it stopped: requests that have an answer in the output file are not asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.engine import add_engine_flags, add_model_argument, running
from qwench.cli.results import ResultFile
from qwench.errors import RequestError, UsageError
from qwench.fault import fault
from qwench.server.lines import CHAT, Line, custom_id_of, parse_line, read_line, refusal, result, whole_body

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient
    from qwench.progress import Progress
    from qwench.server.answer import Answer
    from qwench.server.service import Service
    from qwench.text.model import ModelText

IN_FLIGHT = 64  # requests read ahead of the engine, which has a queue of its own
TICK_SECONDS = 0.2


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
                record = parse_line(raw, number)
                custom_id = custom_id_of(record, number, ids)
                if custom_id in self.results.answered:
                    self.skipped += 1
                    continue
                yield read_line(record, custom_id, number)
            except RequestError as error:
                told = record.get("custom_id")
                self._refuse(told if isinstance(told, str) else None, error)

    async def _work(self, lines: Iterator[Line]) -> None:
        for line in lines:
            await self._answer(line)

    async def _answer(self, line: Line) -> None:
        """One request to one result. The end of the engine ends the batch; any other failure is the request's own."""
        from qwench.server.unattended import outcome

        status, body = await outcome(self._service, line, self._body(line))
        self.answered += status == 200
        self.failed += status != 200
        self.results.write(result(line.custom_id, status, body))

    async def _body(self, line: Line) -> dict[str, object]:
        from qwench.server.unattended import understand
        from qwench.text.thinking import read_thinking

        body = {**whole_body(line), "model": self.client.name}  # any name will do
        if line.url == CHAT and self.think_budget is not None and not read_thinking(body).sources:
            body["thinking_budget"] = self.think_budget
        work = await understand(self._service, line.url, body)
        self.warnings.update(work.prepared.warnings)
        answer = await work.submit(self._service)
        self.running.add(answer)
        try:
            return await work.told(self._service, answer)
        finally:
            answer.abort()
            self.running.discard(answer)
            self.tokens += _tokens(answer)

    @cached_property
    def _service(self) -> Service:
        from qwench.server.service import ServerSettings, Service

        return Service(self.client, self.text, ServerSettings(names=(self.client.name,)))

    def _refuse(self, custom_id: str | None, error: RequestError) -> None:
        self.failed += 1
        self.results.write(refusal(custom_id, error.code or error.type, error.message))

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
            if custom_id_of(parse_line(raw, number), number, ids) not in answered:
                return False
        except RequestError:
            return False
    return True

"""``/v1/batches``: files of requests that are answered when nobody else waits.

``BatchRunner`` works on all that is kept, oldest first and equally for every key; what came of each request is kept at
once, so it goes on after any kind of end. Knows no SQL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwench.errors import QwenchError, RequestError
from qwench.server.admin import body_of
from qwench.server.errors import encode, json_response
from qwench.server.files import keeping, page
from qwench.server.gate import OWNER
from qwench.server.lines import URLS, Line, custom_id_of, nearest, parse_line, read_line, refusal, result, whole_body
from qwench.server.reply import read_json
from qwench.server.schemas import BatchRequest, listing, shape
from qwench.server.service import Service
from qwench.server.store import Document, Full
from qwench.server.unattended import outcome, understand

MOST_LINES = 50_000  # in a batch, as OpenAI takes
MOST_LINE = 32 << 20  # bytes of one
MOST_ERRORS = 100  # that are looked for in a file
USUAL_BATCHES, MOST_BATCHES = 20, 100  # in a list
MOST_RUNNING = 4  # requests at a time
SHARE = 4  # at most one of so many places
TICK = 0.2  # seconds until it is looked again whether somebody waits
PAUSE = 10.0  # seconds until a store that was full is tried again

logger = logging.getLogger(__name__)


def batch_routes(service: Service, runner: BatchRunner) -> APIRouter:
    """Create, list, retrieve, cancel."""
    router = APIRouter()

    @router.post("/v1/batches", openapi_extra=body_of("BatchRequest"))
    async def create_batch(request: Request) -> Response:
        """Answer the requests of an uploaded file, in the background."""
        asked = shape(BatchRequest, await read_json(service, request))
        document = await asyncio.to_thread(_create, service, asked, request.scope[OWNER])
        runner.wake.set()
        return json_response(document, headers=keeping(service))

    @router.get("/v1/batches", openapi_extra=listing())
    async def list_batches(request: Request) -> Response:
        """The key's own batches, the newest first."""
        found = await asyncio.to_thread(service.store.batches, request.scope[OWNER])
        return json_response(page(found, request, USUAL_BATCHES, MOST_BATCHES))

    @router.get("/v1/batches/{batch_id}")
    async def retrieve_batch(request: Request, batch_id: str) -> Response:
        """One of them: its state, counts and files."""
        return json_response(await asyncio.to_thread(service.store.batch, request.scope[OWNER], batch_id))

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(request: Request, batch_id: str) -> Response:
        """Begin no more of its requests; what is answered is kept."""
        document = await asyncio.to_thread(service.store.cancel, request.scope[OWNER], batch_id)
        runner.wake.set()
        return json_response(document)

    return router


def _create(service: Service, asked: BatchRequest, owner: str) -> Document:
    """The batch, under way; or failed, with what is wrong with each line of its file."""
    if asked.endpoint not in URLS:
        raise RequestError(f"endpoint is {asked.endpoint!r:.80}{nearest(asked.endpoint, URLS)}", param="endpoint")
    file = service.store.file(owner, asked.input_file_id)
    lines, errors = _read(service.store.content(owner, file["id"]), asked.endpoint)
    now = int(time.time())
    given: dict[str, Any] = {
        "endpoint": asked.endpoint,
        "model": service.name,
        "input_file_id": file["id"],
        "completion_window": asked.completion_window,
        "metadata": asked.metadata,
        "output_expires_after": asked.output_expires_after.model_dump() if asked.output_expires_after else None,
        "status": "failed" if errors else "in_progress",
        "errors": {"object": "list", "data": errors} if errors else None,
        "output_file_id": None,
        "error_file_id": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "expires_at": None,
        **{f"{state}_at": None for state in ("finalizing", "completed", "expired", "cancelling", "cancelled")},
        "in_progress_at": None if errors else now,
        "failed_at": now if errors else None,
    }
    return service.store.add_batch(owner, given, () if errors else lines)


def _read(pieces: Iterable[bytes], endpoint: str) -> tuple[list[str], list[dict[str, object]]]:
    """The requests of a file, each as JSON, and what is wrong with its lines."""
    lines: list[str] = []
    errors: list[dict[str, object]] = []
    ids: dict[str, int] = {}
    for number, raw in _split(pieces):
        try:
            record = parse_line(raw, number)
            line = read_line(record, custom_id_of(record, number, ids), number)
            if line.url != endpoint:
                raise RequestError(
                    f"line {number} has the url {line.url}, but the batch is for {endpoint}.", param="url"
                )
            lines.append(json.dumps({"custom_id": line.custom_id, "url": line.url, "body": line.body}))
        except RequestError as error:
            code = error.code or error.type
            errors.append({"code": code, "message": error.message, "param": error.param, "line": number})
        if len(errors) == MOST_ERRORS:
            break
        if len(lines) > MOST_LINES:
            told = {
                "code": "too_many_requests",
                "message": f"There are more than {MOST_LINES} requests; send several files.",
            }
            return [], [{**told, "param": None, "line": number}]
    if not lines and not errors:
        errors.append({"code": "empty_file", "message": "There are no requests.", "param": None, "line": None})
    return lines, errors


def _split(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    rest, number = b"", 0
    for piece in chain(pieces, [b"\n"]):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield number, line
        if len(rest) > MOST_LINE:
            raise RequestError(
                f"line {number + 1} is longer than {MOST_LINE} bytes; shorten it.", param="input_file_id"
            )


class BatchRunner:
    """Runs on the server's event loop. ``wake`` tells it that there is something new."""

    def __init__(self, service: Service) -> None:
        self.wake = asyncio.Event()
        self._service = service
        self._running: dict[asyncio.Task[None], tuple[str, str]] = {}  # batch and owner

    @asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        """Runs as long as the server does."""
        work = asyncio.create_task(self.run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._service.store.close()

    async def run(self) -> None:
        """Work until cancelled; a store that fails is told, and tried again later."""
        left = True
        try:
            while True:
                await self._rest(left or self._service.client.status().state == "loading")
                try:
                    left = await self._turn()
                except QwenchError as error:
                    logger.error("batches wait: %s", error.message)
                    await asyncio.sleep(PAUSE)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _rest(self, soon: bool) -> None:
        """Until somebody says that there is something new, or until it is worth another look."""
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK if soon else None):
                await self.wake.wait()
        self.wake.clear()

    async def _turn(self) -> bool:
        """Begin what there is room for, and end what is over. False if nothing is left to do."""
        store = self._service.store
        while self._has_room() and await self._begin():
            pass
        busy = {batch for batch, _ in self._running.values()}
        for batch, owner, status in await asyncio.to_thread(store.running):
            if status == "cancelling":
                for task in [task for task, (of, _) in self._running.items() if of == batch]:
                    task.cancel()
            if batch not in busy:
                await asyncio.to_thread(store.finish, batch, owner, _cancelled)
        return bool(await asyncio.to_thread(store.running))

    async def _begin(self) -> bool:
        """The next request: of the key that has the fewest running, the oldest batch's. False if there is none."""
        store, mine = self._service.store, Counter(owner for _, owner in self._running.values())
        batches = [each for each in await asyncio.to_thread(store.running) if each[2] == "in_progress"]
        for batch, owner, _ in sorted(batches, key=lambda each: mine[each[1]]):  # stable
            claimed = await asyncio.to_thread(store.claim, batch)
            if claimed is not None:
                number, request = claimed
                line = Line(number, request["custom_id"], request["url"], request["body"])
                task = asyncio.create_task(self._answer(batch, owner, line))
                self._running[task] = batch, owner
                task.add_done_callback(self._ended)
                return True
        return False

    def _is_ready(self) -> bool:
        return self._service.client.status().state == "ready"

    def _has_room(self) -> bool:
        """Whether one more may run: nobody waits, and most places stay for others."""
        if not self._is_ready():
            return False
        stats = self._service.client.stats()
        return not stats.waiting and len(self._running) < max(1, min(MOST_RUNNING, stats.slots_total // SHARE))

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a batch stops: %s", error)  # the engine has ended; the next start goes on

    async def _answer(self, batch: str, owner: str, line: Line) -> None:
        status, body = await outcome(self._service, line, self._body(owner, line))
        told = encode(result(line.custom_id, status, body))
        while True:
            try:
                return await asyncio.to_thread(self._service.store.answer, batch, line.number, status, told)
            except Full as error:
                logger.error("a result waits: %s", error.message)
                await asyncio.sleep(PAUSE)

    async def _body(self, owner: str, line: Line) -> dict[str, object]:
        service = self._service
        work = await understand(service, line.url, whole_body(line))
        work = replace(work, prepared=replace(work.prepared, background=True))
        answer = await work.submit(service, owner)
        try:
            return await work.told(service, answer)
        finally:
            answer.abort()


def _cancelled(request: Document) -> bytes:
    """The result of a request that was not begun, or not ended."""
    return encode(refusal(request["custom_id"], "batch_cancelled", "The batch was cancelled before this was answered."))

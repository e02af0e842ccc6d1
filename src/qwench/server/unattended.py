"""Requests that nobody waits for: the lines of batches, each answered whole by the code that answers clients.

Whatever one of them meets is its own result and costs the others nothing; only the end of the engine ends them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from functools import partial

from qwench.errors import Overloaded, QwenchError
from qwench.server.answer import Answer, whole
from qwench.server.chat import ChatFormat
from qwench.server.completions import CompletionFormat
from qwench.server.errors import InternalError, error_body
from qwench.server.lines import CHAT, RESPONSES, Line
from qwench.server.prepare import Prepared, prepare_chat, prepare_completion
from qwench.server.reply import MakeFormat
from qwench.server.responses.store import ResponseStore
from qwench.server.responses.understood import understood
from qwench.server.service import Service
from qwench.server.translation import Places
from qwench.text.vision import shows

PATIENCE = 0.2  # seconds until a full queue is tried again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A line that is understood: what the engine is asked, and how the answer is written under an id that begins with
    ``prefix``."""

    prepared: Prepared
    form: MakeFormat
    prefix: str
    places: Places = field(default_factory=Places)

    async def submit(self, service: Service, owner: str = "") -> Answer:
        """The answer to it, which has time to wait until there is room in the queue."""
        while True:
            try:
                with self.places.naming():
                    return service.answer(self.prepared, owner)
            except Overloaded:
                await asyncio.sleep(PATIENCE)

    async def told(self, service: Service, answer: Answer) -> dict[str, object]:
        """The whole answer. Raises QwenchError."""
        return await whole(answer, self.form(service.head(self.prefix), answer, service.text.tokenizer))


async def understand(service: Service, url: str, body: Mapping[str, object]) -> Work:
    """What ``body`` asks for. Raises what is refused."""
    if url == RESPONSES:
        found = await understood(service, ResponseStore(0), body, "")
        form = partial(found.form, keep=lambda _: None)
        return Work(found.prepared, form, "resp_", found.asked.translation.places)
    names, eyes = service.names, service.eyes
    prepare = prepare_chat if url == CHAT else prepare_completion
    looks = eyes is not None and shows(body)
    prepared = await service.apart(lambda: prepare(body, service.text, names, eyes), looks=looks)
    return Work(prepared, ChatFormat, "chatcmpl-") if url == CHAT else Work(prepared, CompletionFormat, "cmpl-")


async def outcome(service: Service, line: Line, work: Awaitable[dict[str, object]]) -> tuple[int, dict[str, object]]:
    """Status and body that came of the ``work`` on a line. Raises only where the engine has ended."""
    try:
        return 200, await work
    except QwenchError as error:
        if service.client.status().state != "ready":
            raise
        return error.status, error_body(error)
    except Exception:  # a bug that one request meets must not cost the others their answers
        logger.exception("line %d failed", line.number)
        bug = InternalError(f"The request of line {line.number} met a bug; the log says where.")
        return bug.status, error_body(bug)

"""Requests that nobody waits for: the lines of batches, each answered whole by the code that answers clients.

Whatever one of them meets is its own result and costs the others nothing; only the end of the engine ends them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from qwench.errors import Overloaded, QwenchError
from qwench.server.answer import Answer, whole
from qwench.server.chat import ChatFormat
from qwench.server.completions import CompletionFormat
from qwench.server.errors import InternalError, error_body
from qwench.server.lines import URLS, Line
from qwench.server.prepare import Prepared, prepare_chat, prepare_completion
from qwench.server.reply import MakeFormat, Prepare
from qwench.server.service import Service
from qwench.text.vision import shows

PATIENCE = 0.2  # seconds until a full queue is tried again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """How the requests of one address are understood, and their answers written."""

    prepare: Prepare
    form: MakeFormat
    prefix: str

    async def understand(self, service: Service, body: Mapping[str, object]) -> Prepared:
        """What ``body`` asks for. Raises what is refused."""
        names, eyes = service.settings.names, service.eyes
        looks = eyes is not None and shows(body)
        return await service.apart(lambda: self.prepare(body, service.text, names, eyes), looks=looks)

    async def told(self, service: Service, answer: Answer) -> dict[str, object]:
        """The whole answer. Raises QwenchError."""
        return await whole(answer, self.form(service.head(self.prefix), answer, service.text.tokenizer))


CHAT = Kind(prepare_chat, ChatFormat, "chatcmpl-")
COMPLETION = Kind(prepare_completion, CompletionFormat, "cmpl-")
KINDS = dict(zip(URLS, (CHAT, COMPLETION), strict=True))


async def submit(service: Service, prepared: Prepared, owner: str = "") -> Answer:
    """The answer to a request that has time to wait until there is room in the queue."""
    while True:
        try:
            return service.answer(prepared, owner)
        except Overloaded:
            await asyncio.sleep(PATIENCE)


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

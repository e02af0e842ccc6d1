"""Streams of JSON, a line each, as Ollama's clients read them. There are no comments: a silence stays one."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from qwench.errors import QwenchError
from qwench.server.answer import Answer, Format
from qwench.server.errors import InternalError, encode
from qwench.server.sse import EventStream

logger = logging.getLogger(__name__)


async def lines(answer: Answer, form: Format) -> AsyncGenerator[bytes]:
    """``answer`` line by line; a failure becomes the last."""
    try:
        async with aclosing(answer.deltas()) as deltas:
            async for delta in deltas:
                for chunk in form.chunks(delta) if delta is not None else ():
                    yield encode(chunk) + b"\n"
    except QwenchError as error:
        yield _last(form, error)
    except Exception:
        logger.exception("a stream failed")
        yield _last(form, InternalError("The server failed on this request; its log says why."))


def _last(form: Format, error: QwenchError) -> bytes:
    return b"".join(encode(told) + b"\n" for told in form.failure(error))


class LineStream(EventStream):
    """An ``EventStream`` of lines."""

    media_type = "application/x-ndjson"

    def pieces(self) -> AsyncGenerator[bytes]:
        return lines(self._answer, self._form)
